-- queue_intent: puts an intent into the outbox, and counts it as queued.
--   intents_key, totals_key: hashes; outbox_key: zset; id: its identifier; intent: customer, stripe, period, meter, event,
--   and value as text; minute: its timestamp (ms)
--include count_field
local function queue_intent(intents_key, outbox_key, totals_key, id, intent, minute, now)
  intent.v, intent.state, intent.first, intent.attempts, intent.key = '1', 'queued', '0', '0', id
  intent.time, intent.at = string.format('%.0f', minute / 1000), string.format('%.0f', now)
  redis.call('HSET', intents_key, id, cjson.encode(intent))
  redis.call('ZADD', outbox_key, now, id)
  redis.call('HINCRBY', totals_key, count_field(intent, 'queued'))
end
