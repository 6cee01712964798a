#!lua
-- move_intents: moves intents of one shard to their next states, for the holder of the shard's lease.
--
-- KEYS[1] hash  intents    KEYS[2] zset  outbox: when they are due (ms)    KEYS[3] string  lease
-- KEYS[4] hash  delivered in these days: what Stripe has accepted          KEYS[5] zset  parked: since when (ms)
-- KEYS[6] zset  dead: since when (ms)
-- KEYS[7] zset  compare: parked intents that Stripe may have, by when they are compared with its summaries (ms)
-- KEYS[8] hash  batches of these days: idempotency key to the intents sent with it
-- KEYS[9...] hash  for each move, the totals of the intent's customer
-- ARGV  1 lease token    2 the states that are moved from, each followed by a space
--       3 moves (JSON): {identifier, next state, delay, key, why, untried} each
--         next state: leased, queued, delivered, parked or dead
--         delay: queued: time until it is due (ms); parked: time until it is compared (ms; 0: never)
--         key: queued: next idempotency key; empty: the same
--         untried: 1: Stripe certainly has not accepted it, so no first attempt counts; else 0
--       4 batches that Stripe may have taken (JSON): {idempotency key, packed intents (see outbox/intents.py)} each
--       last: the caller's clock (ms)
-- An intent whose customer's totals are invalid is not moved, and is due again in ten minutes. A short form of delivered
-- intents is kept for 36 days, the intents of a batch for 8 days.
-- Reply {OK, now, for each move {OK, first attempt before this (ms; 0: none), attempts}, {OTHER_STATE} or {UNCOUNTABLE}}
--       {LEASE_LOST}
--include server_ms
--include recount_intent
local intents_key, outbox_key, lease_key, delivered_key, parked_key, dead_key, compare_key = unpack(KEYS, 1, 7)
local batches_key, first_totals = KEYS[8], 9 -- The latter among the keys.
local token, states, moves_text, batches_text, caller_ms = unpack(ARGV)
local moves, batches = cjson.decode(moves_text), cjson.decode(batches_text)
local call, text = redis.call, string.format
if call('GET', lease_key) ~= token then
  return {LEASE_LOST}
end
local now, reply = server_ms(caller_ms), {OK}

-- Returns the time of the first attempt before this one, and the number of attempts.
local function write_move(id, intent, delay, key, why, untried)
  local is_kept = true
  if untried == 1 then
    intent.first = '0'
  end
  local tried_ms = tonumber(intent.first)
  if intent.state == 'leased' then
    intent.attempts = text('%.0f', intent.attempts + 1)
    if intent.first == '0' then
      intent.first = text('%.0f', now)
    end
  elseif intent.state == 'queued' then
    call('ZADD', outbox_key, now + delay, id)
    if key ~= '' then
      intent.key = key
    end
  else
    call('ZREM', outbox_key, id)
    if intent.state == 'delivered' then
      local short = {intent.customer, intent.stripe, intent.event, intent.time, intent.value}
      call('HDEL', intents_key, id)
      call('HSET', delivered_key, id, cjson.encode(short))
      call('PEXPIRE', delivered_key, THIRTY_SIX_DAYS_MS)
      is_kept = false
    else
      call('ZADD', intent.state == 'parked' and parked_key or dead_key, now, id)
      if intent.state == 'parked' and delay > 0 then
        call('ZADD', compare_key, now + delay, id)
      end
    end
  end
  if is_kept then
    intent.why = why ~= '' and why or nil
    call('HSET', intents_key, id, cjson.encode(intent))
  end
  return tried_ms, tonumber(intent.attempts)
end

for i, move in ipairs(moves) do
  local id, state, delay, key, why, untried = unpack(move)
  local found = call('HGET', intents_key, id)
  local intent = found and cjson.decode(found)
  local answer = {OTHER_STATE}
  if intent and string.find(states, intent.state .. ' ', 1, true) then
    if recount_intent(KEYS[first_totals - 1 + i], intent, intent.state, state) then
      if intent.state == 'parked' then
        call('ZREM', parked_key, id)
        call('ZREM', compare_key, id)
      elseif intent.state == 'dead' then
        call('ZREM', dead_key, id)
      end
      intent.state = state
      answer = {OK, write_move(id, intent, delay, key, why, untried)}
    else
      call('ZADD', outbox_key, 'XX', now + 10 * MINUTE_MS, id)
      answer = {UNCOUNTABLE}
    end
  end
  reply[i + 2] = answer
end
for _, batch in ipairs(batches) do
  call('HSET', batches_key, batch[1], batch[2])
  call('PEXPIRE', batches_key, EIGHT_DAYS_MS)
end
reply[2] = now
return reply
