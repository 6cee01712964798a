-- unpack_life: when the counters of a subject expire (ms); 0: it has none. An error where the field is damaged.
local function unpack_life(packed)
  local form, expires_ms, more = cmsgpack.unpack(packed or EMPTY_LIFE)
  if form ~= FORM or not expires_ms or more then
    error('DAMAGED field h')
  end
  return expires_ms
end
