-- wait_for_link: lists a customer whose pending usage waits for a link to Stripe, until this usage expires (ms).
-- Each call removes up to 100 customers whose usage has expired.
local function wait_for_link(unlinked_key, customer, expires_ms, now)
  local expired = redis.call('ZRANGEBYSCORE', unlinked_key, '-inf', now, 'LIMIT', 0, 100)
  if #expired > 0 then
    redis.call('ZREM', unlinked_key, unpack(expired))
  end
  redis.call('ZADD', unlinked_key, 'GT', expires_ms, customer)
end
