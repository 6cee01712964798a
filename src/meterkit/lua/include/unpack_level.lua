-- unpack_level: how far a gauge is filled; since when that is more than what is included (ms; 0: it is not); and what was
-- included when it last was not (-1: unlimited). An error where the field is damaged.
local function unpack_level(packed, gauge)
  local form, level, over_ms, fitted, more = cmsgpack.unpack(packed or EMPTY_LEVEL)
  if form ~= FORM or not fitted or more then
    error('DAMAGED field ' .. gauge)
  end
  return level, over_ms, fitted
end
