-- end_in_flight: what the end of a request with an idempotency key comes to.
--   key: see find_repeat; slot: of holds, in which it was admitted: by that it knows its own mark
-- Returns whether another one was billed meanwhile: then nothing of this one is recorded; and keep(): writes that this
-- one is not in flight any more, and remembers it where it is billed.
--include remember_until
local function end_in_flight(key, digest, is_billed, slot, now)
  local call, flight = redis.call, 'f' .. digest
  local is_own = tonumber(call('ZSCORE', key, flight) or 0) == (slot + 2) * HOLD_SLOT_MS
  local is_repeat = tonumber(call('ZSCORE', key, digest) or 0) > now
  local function keep()
    if is_own then
      call('ZREM', key, flight)
    end
    if is_billed and not is_repeat then
      remember_until(key, digest, now + DAY_MS, now)
    end
  end
  return is_repeat, keep
end
