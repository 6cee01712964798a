#!lua
-- refuse_intent: parks an intent that Stripe accepted and refused later, or makes it dead. It gets a new identifier, so that
-- it can be sent again: Stripe may know the old one.
--
-- KEYS[1] hash  intents    KEYS[2] zset  outbox    KEYS[3] hash  delivered on a day    KEYS[4] zset  parked or dead
-- KEYS[5] hash  its customer's totals
-- ARGV  1 the identifier    2 the new one    3 the next state: parked or dead    4 why
--       5 tokens of the event name's meters, each followed by a space: one may have had another name in the plans file
--       6 the customer      last: the caller's clock (ms)
-- A delivered intent belongs to the period of its timestamp, and to the meter that has most delivered units in it. Stripe may
-- have refused one attempt and accepted another, so the intent keeps the time of its first attempt. If that is unknown, it
-- gets the current time.
-- Reply INTENT_REFUSED
--       INTENT_GONE          no such intent, or it is parked or dead: nothing is done
--       INTENT_LEASED        a flusher is sending it: nothing is done
--       TOTALS_UNCOUNTABLE   its customer's totals are invalid: nothing is done
--include server_ms
--include recount_intent
local intents_key, outbox_key, delivered_key, parked_key, totals_key = unpack(KEYS)
local id, new_id, state, why, tokens, customer, caller_ms = unpack(ARGV)
local call, text = redis.call, string.format
local packed, short = call('HGET', intents_key, id), call('HGET', delivered_key, id)
local intent
if packed then
  intent = cjson.decode(packed)
elseif short then
  local fields = redis.pcall('HGETALL', totals_key)
  if fields.err then
    return TOTALS_UNCOUNTABLE
  end
  local owner, stripe_customer, event, time, value = unpack(cjson.decode(short))
  local begins_ms, units, period, token, kind = -1, -1, nil, nil, string.sub(value, 1, 1) == '-' and 'D' or 'd'
  for known in string.gmatch(tokens, '(....) ') do
    for i = 1, #fields, 2 do
      local begin = string.sub(fields[i], -5) == known .. kind and string.match(fields[i], '^(%d+)|')
      local at_ms = tonumber(begin)
      local there = tonumber(string.match(fields[i + 1], '^%d+$') or math.huge) -- An unreadable count may be the largest.
      if begin and at_ms <= time * 1000 and (at_ms > begins_ms or at_ms == begins_ms and there > units) then
        begins_ms, units, period, token = at_ms, there, begin, known
      end
    end
  end
  intent = period and {v = '1', state = 'delivered', customer = owner, stripe = stripe_customer, period = period,
    meter = token, event = event, value = value, time = time}
end
if not intent or intent.customer ~= customer or intent.state == 'parked' or intent.state == 'dead' then
  return INTENT_GONE
elseif intent.state == 'leased' then
  return INTENT_LEASED
end
local field, value = count_field(intent, intent.state)
local counted = intent.state == 'delivered' and call('HGET', totals_key, field)
if counted and (tonumber(counted) or -1) < tonumber(value) or not recount_intent(totals_key, intent, intent.state, state) then
  return TOTALS_UNCOUNTABLE
end
local now = server_ms(caller_ms)
local at = text('%.0f', now)
intent.state, intent.key, intent.why, intent.refused, intent.attempts = state, new_id, why, at, '0'
intent.first = (intent.first or '0') ~= '0' and intent.first or at
intent.at = intent.at or at
call('HDEL', intents_key, id)
call('ZREM', outbox_key, id)
call('HDEL', delivered_key, id)
call('HSET', intents_key, new_id, cjson.encode(intent))
call('ZADD', parked_key, now, new_id)
return INTENT_REFUSED
