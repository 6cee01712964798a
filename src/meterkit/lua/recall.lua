#!lua
-- recall: takes back sealed usage that Stripe certainly knows nothing of: it is pending again, and waits for the
-- next link.
--
-- KEYS[1] hash  intents     KEYS[2] zset  outbox    KEYS[3] hash  totals    KEYS[4] hash  counters
-- KEYS[5] hash  state       KEYS[6] zset  unlinked
-- ARGV  1 the rev at which the customer was unlinked    2 the customer    3... intents
--       last: the caller's clock (ms)
-- Reply {0, how many were taken back}    {1} the customer has changed since
--include wall
local call = redis.call
if call('HGET', KEYS[5], 'rev') ~= ARGV[1] then
  return {1}
end
local now, taken = wall_ms(), 0
local begins, ends = unpack(call('HMGET', KEYS[4], 'b', 'e'))
for i = 3, #ARGV - 1 do
  local found = call('HGET', KEYS[1], ARGV[i])
  local intent = found and cjson.decode(found)
  if intent and intent.state == 'queued' and intent.first == '0' and intent.customer == ARGV[2] then
    local field = intent.period .. '|' .. intent.meter
    call('HINCRBY', KEYS[3], field .. 'q', '-' .. intent.value)
    if intent.period == begins then
      call('HINCRBY', KEYS[4], intent.meter .. 'p', intent.value)
    else
      call('HINCRBY', KEYS[3], field .. 'p', intent.value)
      -- Where the counters were gone before they could close the period, its end is behind this minute.
      call('HSETNX', KEYS[3], intent.period .. '|e', string.format('%.0f', (intent.time + 60) * 1000))
    end
    call('HDEL', KEYS[1], ARGV[i])
    call('ZREM', KEYS[2], ARGV[i])
    taken = taken + 1
  end
end
if taken > 0 then
  local lives = math.max(ends or 0, now) + 3024000000
  call('ZADD', KEYS[6], lives, ARGV[2])
  if ends then
    call('HSET', KEYS[4], 'x', lives)
    call('PEXPIREAT', KEYS[4], lives)
  end
end
return {0, taken}
