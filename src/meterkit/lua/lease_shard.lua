#!lua
-- lease_shard: leases the deliveries of a shard to a process, renews the lease, or releases it.
--
-- KEYS[1] string  the lease: the token of its holder
-- ARGV  1 token    2 duration (ms); 0: release it
-- Reply 1 held (or released)    0 another process holds it
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
