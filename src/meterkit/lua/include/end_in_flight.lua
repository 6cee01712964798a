-- end_in_flight: ends the mark of a request in flight with an idempotency key.
--   key: see find_repeat; slot: of holds, in which the request was admitted: by it the request knows its own mark
-- Returns whether another request with the key was billed by now: then nothing of this one is recorded; and remember(),
-- which writes that this one is no longer in flight, and that the key is billed if this one is.
--include remember_until
local function end_in_flight(key, digest, is_billed, slot, now)
  local call, mark = redis.call, 'f' .. digest
  local is_own = tonumber(call('ZSCORE', key, mark) or 0) == (slot + 2) * HOLD_SLOT_MS
  local is_repeat = tonumber(call('ZSCORE', key, digest) or 0) > now
  local function remember()
    if is_own then
      call('ZREM', key, mark)
    end
    if is_billed and not is_repeat then
      remember_until(key, digest, now + DAY_MS, now)
    end
  end
  return is_repeat, remember
end
