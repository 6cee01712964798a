-- restate_levels: updates the state of levels against the included quantities from now on. Raises an error if one is
-- damaged: nothing is done.
--   levels_key, over_key: see write_level; gauges: {name, included (-1: unlimited)} each
--include unpack_level
--include write_level
local function restate_levels(levels_key, over_key, customer, gauges, now)
  local found = {}
  for _, gauge in ipairs(gauges) do
    local name, included = unpack(gauge)
    local packed = redis.call('HGET', levels_key, name)
    if packed then
      local level, over_ms, fitted = unpack_level(packed, name)
      found[#found + 1] = {name, customer, level, included, over_ms, fitted, now}
    end
  end
  for _, level in ipairs(found) do
    write_level(levels_key, over_key, unpack(level))
  end
end
