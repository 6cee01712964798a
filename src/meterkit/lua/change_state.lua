#!lua
-- change_state: changes the state of an intent, or its comparison with Stripe, for an operator or for a comparison with
-- Stripe's summaries. The change is entered into the customer's ledger of changes. A flusher that is sending the intent can
-- no longer settle it.
--
-- KEYS[1] hash  intents     KEYS[2] zset  outbox: when they are due (ms)    KEYS[3] zset  parked: since when (ms)
-- KEYS[4] zset  dead: since when (ms)
-- KEYS[5] zset  compare: parked intents that Stripe may have, by when they are compared with its summaries (ms)
-- KEYS[6] hash  its customer's totals    KEYS[7] list  its customer's ledger of changes
-- KEYS[8] hash  delivered in these days: what Stripe has accepted, and what was dropped
-- KEYS[9] stream  optional: of the audit log
-- ARGV  1 the intent    2 as it was read (JSON)    3 its new identifier
--       4 the intent from now on (JSON), with its state: queued, parked, dead, delivered or dropped
--       5 time until it is compared (ms); empty: it is not compared    6 entries (JSON, see append_history)
--       7 audit entry of a dropped intent (JSON)
--       last: the caller's clock (ms)
-- Reply {OK, now}
--       {CHANGED, now}           the intent has changed since it was read: nothing is done
--       {UNCOUNTABLE, now}       its customer's totals are invalid: nothing is done
--include server_ms
--include recount_intent
--include append_history
local intents_key, outbox_key, parked_key, dead_key, compare_key, totals_key, history_key, delivered_key, audit_key =
  unpack(KEYS)
local id, read, new_id, text, compare_in_ms, entries, dropped = unpack(ARGV)
local call, now = redis.call, server_ms(ARGV[#ARGV])
if call('HGET', intents_key, id) ~= read then
  return {CHANGED, now}
end
local was, intent = cjson.decode(read), cjson.decode(text)
if was.state ~= intent.state then
  if not recount_intent(totals_key, was, was.state, intent.state) then
    return {UNCOUNTABLE, now}
  end
  local places = {queued = outbox_key, leased = outbox_key, parked = parked_key, dead = dead_key}
  call('ZREM', places[was.state], id)
  if places[intent.state] then
    call('ZADD', places[intent.state], now, new_id)
  end
end
call('ZREM', compare_key, id)
call('HDEL', intents_key, id)
if intent.state == 'delivered' or intent.state == 'dropped' then
  local short = {intent.customer, intent.stripe, intent.event, intent.time, intent.value}
  -- A dropped intent keeps its minute, under a name that no error report of Stripe has.
  local name = intent.state == 'dropped' and 'dropped|' .. new_id or new_id
  call('HSET', delivered_key, name, cjson.encode(short))
  call('PEXPIRE', delivered_key, THIRTY_SIX_DAYS_MS)
else
  call('HSET', intents_key, new_id, text)
end
if compare_in_ms ~= '' then
  call('ZADD', compare_key, now + compare_in_ms, new_id)
end
append_history(history_key, cjson.decode(entries))
if audit_key and intent.state == 'dropped' then
  call('XADD', audit_key, '*', 'k', 'dropped', 'd', dropped, 'at', string.format('%.0f', now))
end
return {OK, now}
