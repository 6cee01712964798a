-- restate_levels: updates the state of levels against the included quantities from now on. Raises an error if one is
-- damaged: nothing is done.
--   key: hash of a gauge to its level, packed; gauges: {name, included (-1: unlimited)} each
--include unpack_level
--include level_state
local function restate_levels(key, gauges, now)
  local turned = {}
  for _, gauge in ipairs(gauges) do
    local name, included = unpack(gauge)
    local packed = redis.call('HGET', key, name)
    if packed then
      local level, over_ms, fitted = unpack_level(packed, name)
      turned[#turned + 1] = name
      turned[#turned + 1] = cmsgpack.pack(FORM, level, level_state(level, included, over_ms, fitted, now))
    end
  end
  if #turned > 0 then
    redis.call('HSET', key, unpack(turned))
  end
end
