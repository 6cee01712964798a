#!lua flags=no-writes
-- count_due: counts the members of sorted sets with a score up to a limit; sets without any are left out.
--
-- KEYS[...] zset
-- ARGV  1 the limit, or +inf    last: the caller's clock (ms)
-- Reply {number of the key, count, ...}
local limit, reply = ARGV[1], {}
for i, key in ipairs(KEYS) do
  local members = redis.call('ZCOUNT', key, '-inf', limit)
  if members > 0 then
    reply[#reply + 1] = i
    reply[#reply + 1] = members
  end
end
return reply
