#!lua flags=no-writes
-- count_due: how many members of sorted sets have a score up to a limit; the empty ones are passed over.
--
-- KEYS[...] zset
-- ARGV  1 the limit, or +inf    last: the caller's clock (ms)
-- Reply {which key, how many, ...}
local limit, reply = ARGV[1], {}
for i, key in ipairs(KEYS) do
  local members = redis.call('ZCOUNT', key, '-inf', limit)
  if members > 0 then
    reply[#reply + 1] = i
    reply[#reply + 1] = members
  end
end
return reply
