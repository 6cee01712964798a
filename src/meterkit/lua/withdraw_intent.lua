#!lua
-- withdraw_intent: removes an intent whose own invoice is final, and makes its usage pending again. Stripe must not have it.
--
-- KEYS[1] hash  intents     KEYS[2] zset  outbox: when they are due (ms)    KEYS[3] zset  parked: since when (ms)
-- KEYS[4] zset  compare: parked intents that Stripe may have, by when they are compared with its summaries (ms)
-- KEYS[5] hash  its customer's totals    KEYS[6] zset  dirty    KEYS[7] list  its customer's ledger of changes
-- ARGV  1 the intent    2 as it was read (JSON)    3 entries (JSON, see append_history)    last: the caller's clock (ms)
-- Reply {OK, now}
--       {CHANGED, now}           the intent has changed since it was read: nothing is done
--       {UNCOUNTABLE, now}       its customer's totals are invalid: nothing is done
--include server_ms
--include recount_intent
--include append_history
local intents_key, outbox_key, parked_key, compare_key, totals_key, dirty_key, history_key = unpack(KEYS)
local id, read, entries = unpack(ARGV)
local call, now = redis.call, server_ms(ARGV[#ARGV])
if call('HGET', intents_key, id) ~= read then
  return {CHANGED, now}
end
local intent = cjson.decode(read)
if not recount_intent(totals_key, intent, intent.state, 'pending') then
  return {UNCOUNTABLE, now}
end
-- If the counters have not closed the period yet, its end is after this minute.
call('HSETNX', totals_key, intent.period .. '|e', string.format('%.0f', (intent.time + 60) * 1000))
call('ZREM', outbox_key, id)
call('ZREM', parked_key, id)
call('ZREM', compare_key, id)
call('HDEL', intents_key, id)
call('ZADD', dirty_key, now, intent.customer)
append_history(history_key, cjson.decode(entries))
return {OK, now}
