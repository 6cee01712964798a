-- remember_until: puts a member into a zset of what is remembered until an instant (ms); 10,000 at most, of those that are
-- not over. What is over is forgotten, some with each call.
local function remember_until(key, member, until_ms, now)
  local call = redis.call
  local expired = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 100)
  if #expired > 0 then
    call('ZREM', key, unpack(expired))
  end
  if call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf') < REMEMBERED_MOST then
    call('ZADD', key, string.format('%.0f', until_ms), member)
    call('PEXPIREAT', key, string.format('%.0f', now + DAY_MS))
  end
end
