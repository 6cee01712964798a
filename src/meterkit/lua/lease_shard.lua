#!lua
-- lease_shard: takes a shard's deliveries for a while, keeps them, or gives them back.
--
-- KEYS[1] string  the lease: the token of its holder
-- ARGV  1 token    2 how long (ms); 0: give it back
-- Reply 1 held (or given back)    0 another process holds it
local lease_key, token, ttl_ms = KEYS[1], ARGV[1], ARGV[2]
local holder = redis.call('GET', lease_key)
if holder and holder ~= token then
  return 0
elseif ttl_ms == '0' then
  redis.call('DEL', lease_key)
else
  redis.call('SET', lease_key, token, 'PX', ttl_ms)
end
return 1
