#!lua
-- move: an intent from one state to the next, by the holder of its shard's lease.
--
-- KEYS[1] hash  intents     KEYS[2] zset  outbox   KEYS[3] hash  the customer's totals
-- KEYS[4] string  lease     KEYS[5] zset  delivered: intents by when Stripe accepted them (ms)
-- ARGV  1 intent            2 lease token          3 the states it may be in, each followed by a space
--       4 its next state: leased, queued, delivered, parked or dead
--       5 with queued: how long until it is due (ms)   6 with queued: its next idempotency key, or empty
--       7 why, or empty     8 with queued: whether it certainly was not accepted, so no first attempt counts (0/1)
--       last: the caller's clock (ms)
-- What was delivered is kept for 35 days.
-- Reply {0, now, first attempt (ms), attempts}    {1} no such intent, or in another state    {2} the lease is lost
--include wall
local call = redis.call
if call('GET', KEYS[4]) ~= ARGV[2] then
  return {2}
end
local found = call('HGET', KEYS[1], ARGV[1])
local intent = found and cjson.decode(found)
if not intent or not string.find(ARGV[3], intent.state .. ' ', 1, true) then
  return {1}
end
local now = wall_ms()
local letters = {queued = 'q', leased = 'l', delivered = 'd', parked = 'k', dead = 'x'}
local field = intent.period .. '|' .. intent.meter
call('HINCRBY', KEYS[3], field .. letters[intent.state], '-' .. intent.value)
call('HINCRBY', KEYS[3], field .. letters[ARGV[4]], intent.value)
call('PEXPIRE', KEYS[3], 34560000000)
intent.state = ARGV[4]
if ARGV[4] == 'leased' then
  intent.attempts = string.format('%.0f', intent.attempts + 1)
  if intent.first == '0' then
    intent.first = string.format('%.0f', now)
  end
elseif ARGV[4] == 'queued' then
  call('ZADD', KEYS[2], now + ARGV[5], ARGV[1])
  if ARGV[6] ~= '' then
    intent.key = ARGV[6]
  end
  if ARGV[8] == '1' then
    intent.first = '0'
  end
else
  call('ZREM', KEYS[2], ARGV[1])
end
if ARGV[4] == 'delivered' then
  call('ZADD', KEYS[5], now, ARGV[1])
  local old = call('ZRANGEBYSCORE', KEYS[5], '-inf', now - 3024000000, 'LIMIT', 0, 10)
  if #old > 0 then
    call('HDEL', KEYS[1], unpack(old))
    call('ZREM', KEYS[5], unpack(old))
  end
end
intent.why = ARGV[7] ~= '' and ARGV[7] or nil
call('HSET', KEYS[1], ARGV[1], cjson.encode(intent))
return {0, now, tonumber(intent.first), tonumber(intent.attempts)}
