-- schedule_seal: puts a customer among those with pending usage: until it is due to be sealed, or, of one who is not
-- linked, until it expires.
--   waiting_key: zset; seal_delay_ms: -1: not linked; expires_ms: when the counters would expire
-- Returns when they do.
local function schedule_seal(waiting_key, customer, seal_delay_ms, ends_ms, expires_ms, now)
  local is_linked = seal_delay_ms >= 0
  local due_ms = is_linked and math.min(now + seal_delay_ms, ends_ms) or ends_ms + UNLINKED_KEPT_MS
  redis.call('ZADD', waiting_key, 'NX', due_ms, customer)
  return is_linked and NEVER_MS or math.max(expires_ms, due_ms)
end
