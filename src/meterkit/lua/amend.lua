#!lua
-- amend: replaces a customer's state, if it is still the one that was read. The next decision of every
-- process sees the new rev. Pending usage moves with the link: it waits for the seal, or for another link.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] set  customers with state
-- KEYS[4] zset  dirty       KEYS[5] zset  unlinked
-- ARGV  1 the rev that was read   2 the new rev   3 the new state (JSON)
--       4 the customer            5 linked (0/1)  6 now: when to seal what was waiting for the link (ms)
-- Reply {0} done    {1, rev, state} somebody else was faster
local call = redis.call
local found = call('HMGET', KEYS[2], 'rev', 'data')
if (found[1] or '1:0') ~= ARGV[1] then
  return {1, found[1] or '1:0', found[2] or ''}
end
-- Before the first write: it fails where the counters are no hash.
local ends = call('HGET', KEYS[1], 'e')
call('HSET', KEYS[2], 'rev', ARGV[2], 'data', ARGV[3])
call('SADD', KEYS[3], ARGV[4])
if ends then
  call('HSET', KEYS[1], 'r', ARGV[2])
end
if ARGV[5] == '1' and call('ZREM', KEYS[5], ARGV[4]) == 1 then
  call('ZADD', KEYS[4], ARGV[6], ARGV[4])
  if ends then
    call('HSET', KEYS[1], 'x', 9000000000000000)
    call('PERSIST', KEYS[1])
  end
elseif ARGV[5] == '0' and call('ZREM', KEYS[4], ARGV[4]) == 1 and ends then
  local lives = math.max(ends, ARGV[6]) + 3024000000
  call('ZADD', KEYS[5], lives, ARGV[4])
  call('HSET', KEYS[1], 'x', lives)
  call('PEXPIREAT', KEYS[1], lives)
end
return {0}
