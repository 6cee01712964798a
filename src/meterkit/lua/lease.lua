#!lua
-- lease: takes a shard's deliveries for a while, keeps them, or gives them back.
--
-- KEYS[1] string  the lease: the token of its holder
-- ARGV  1 token    2 how long (ms); 0: give it back
-- Reply 1 held (or given back)    0 somebody else holds it
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
elseif ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
