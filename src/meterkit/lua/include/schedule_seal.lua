-- schedule_seal: puts a customer among those with pending usage: until it is due to be sealed, or, of one who is not
-- linked, until it expires.
--   waiting_key: zset; seal_delay_ms: -1: not linked; expires_ms: when the counters would expire
-- Returns when they do.
--include wait_for_link
local function schedule_seal(waiting_key, customer, seal_delay_ms, ends_ms, expires_ms, now)
  if seal_delay_ms >= 0 then
    redis.call('ZADD', waiting_key, 'NX', math.min(now + seal_delay_ms, ends_ms), customer)
    return NEVER_MS
  end
  wait_for_link(waiting_key, customer, ends_ms + UNLINKED_KEPT_MS, now)
  return math.max(expires_ms, ends_ms + UNLINKED_KEPT_MS)
end
