-- store_rebuilt_intents: stores the intents that a rebuild has parked, to be compared with Stripe's summaries.
--   keys: intents (hash), parked, compare (zset), totals (hash); made: the intents; shares: by event name, see rebuild_counters
local function store_rebuilt_intents(intents_key, parked_key, compare_key, totals_key, made, shares, now)
  for _, intent in ipairs(made) do
    local share = shares[intent.event]
    intent.base, intent.together = string.format('%.0f', share.base), string.format('%.0f', share.parked)
    intent.till = string.format('%.0f', share.till_ms / 1000)
    redis.call('HSET', intents_key, intent.key, cjson.encode(intent))
    redis.call('ZADD', parked_key, now, intent.key)
    redis.call('ZADD', compare_key, now + REBUILT_COMPARE_MS, intent.key)
    redis.call('HINCRBY', totals_key, intent.period .. '|' .. intent.meter .. 'k', intent.value)
  end
end
