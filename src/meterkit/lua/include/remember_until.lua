-- remember_until: adds a member to a zset until an instant (ms), if fewer than REMEMBERED_MOST have not expired.
-- Each call removes up to 100 expired ones.
local REMEMBERED_MOST = 10000 -- Idempotency keys of a customer.
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
