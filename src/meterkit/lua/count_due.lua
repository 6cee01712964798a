#!lua flags=no-writes
-- count_due: counts the members of sorted sets with a score up to a limit; sets without any are left out. A key that is
-- no sorted set counts as one member: the next command to it raises the error, and the other sets are used.
--
-- KEYS[...] zset
-- ARGV  1 the limit, or +inf    last: the caller's clock (ms)
-- Reply {number of the key, count, ...}
local limit, reply = ARGV[1], {}
for i, key in ipairs(KEYS) do
  local members = redis.pcall('ZCOUNT', key, '-inf', limit)
  members = type(members) == 'table' and 1 or members
  if members > 0 then
    reply[#reply + 1] = i
    reply[#reply + 1] = members
  end
end
return reply
