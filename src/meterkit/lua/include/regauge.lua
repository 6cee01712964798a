-- regauge: notes how levels stand to what is included from now on. An error where one is damaged, and nothing is done.
--   key: hash of a gauge to its level, packed; gauges: {name, included (-1: unlimited)} each
--include level_of
--include standing_of
local function regauge(key, gauges, now)
  local turned = {}
  for _, gauge in ipairs(gauges) do
    local name, included = unpack(gauge)
    local packed = redis.call('HGET', key, name)
    if packed then
      local level, over_ms, fitted = level_of(packed, name)
      turned[#turned + 1] = name
      turned[#turned + 1] = cmsgpack.pack(FORM, level, standing_of(level, included, over_ms, fitted, now))
    end
  end
  if #turned > 0 then
    redis.call('HSET', key, unpack(turned))
  end
end
