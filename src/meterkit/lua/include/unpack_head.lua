-- unpack_head: what the field "h" of counters says of the customer; of none: zeros, and '' as the rev.
-- Returns the last time seen, start and end of the period, when the counters expire (all ms), and the rev of the
-- state that they know. An error where the field is damaged.
local function unpack_head(packed)
  local form, seen_ms, begins_ms, ends_ms, expires_ms, rev, more = cmsgpack.unpack(packed or EMPTY_HEAD)
  if form ~= FORM or not rev or more then
    error('DAMAGED field h')
  end
  return seen_ms, begins_ms, ends_ms, expires_ms, rev
end
