-- level_of: how far a gauge is filled, and since when that is more than what is included (ms; 0: it is not). An error
-- where the field is damaged.
local function level_of(packed, gauge)
  local form, level, over_ms, more = cmsgpack.unpack(packed or EMPTY_LEVEL)
  if form ~= FORM or not over_ms or more then
    error('DAMAGED field ' .. gauge)
  end
  return level, over_ms
end
