#!lua
-- recall_intents: makes sealed usage pending again that Stripe certainly does not have. It waits for the next link.
--
-- KEYS[1] hash  intents     KEYS[2] zset  outbox    KEYS[3] hash  totals    KEYS[4] hash  counters
-- KEYS[5] hash  state       KEYS[6] zset  unlinked
-- ARGV  1 the rev at which the customer was unlinked    2 the customer    3... intents
--       last: the caller's clock (ms)
-- Reply {OK, number of recalled intents}
--       {CHANGED}                the customer has changed since it was read: nothing is done
--       the error DAMAGED        the counters are invalid: nothing is done
--include server_ms
--include read_counters
--include pack_meter
--include wait_for_link
local intents_key, outbox_key, totals_key, counters_key, state_key, unlinked_key = unpack(KEYS)
local rev, customer, caller_ms = ARGV[1], ARGV[2], ARGV[#ARGV]
local call = redis.call
if call('HGET', state_key, 'rev') ~= rev then
  return {CHANGED}
end
local head, meters, damaged = read_counters(counters_key)
if damaged then
  return redis.error_reply('DAMAGED the counters cannot be read: no whole numbers in field ' .. damaged)
end
local now, taken = server_ms(caller_ms), 0
local period = head and string.format('%.0f', head.begins_ms)
for i = 3, #ARGV - 1 do
  local id = ARGV[i]
  local found = call('HGET', intents_key, id)
  local intent = found and cjson.decode(found)
  -- A negative intent goes to the Stripe customer that has its units.
  local is_own = intent and intent.customer == customer and string.sub(intent.value, 1, 1) ~= '-'
  if is_own and intent.state == 'queued' and intent.first == '0' then
    local field = intent.period .. '|' .. intent.meter
    call('HINCRBY', totals_key, field .. 'q', '-' .. intent.value)
    if intent.period == period then
      local meter = meters[intent.meter] or read_meter(EMPTY_METER)
      meters[intent.meter] = meter
      meter.pending = meter.pending + intent.value
      call('HSET', counters_key, intent.meter .. 'm', pack_meter(meter))
    else
      call('HINCRBY', totals_key, field .. 'p', intent.value)
      -- If the counters were gone before they could close the period, its end is after this minute.
      call('HSETNX', totals_key, intent.period .. '|e', string.format('%.0f', (intent.time + 60) * 1000))
    end
    call('HDEL', intents_key, id)
    call('ZREM', outbox_key, id)
    taken = taken + 1
  end
end
if taken > 0 then
  local expires_ms = math.max(head and head.ends_ms or 0, now) + UNLINKED_KEPT_MS
  wait_for_link(unlinked_key, customer, expires_ms, now)
  if head then
    call('HSET', counters_key, 'h',
      cmsgpack.pack(FORM, head.seen_ms, head.begins_ms, head.ends_ms, expires_ms, head.rev))
    call('PEXPIREAT', counters_key, expires_ms)
  end
end
return {OK, taken}
