-- end_in_flight: ends the mark of a request in flight with an idempotency key.
--   key: see find_repeat; slot: the hold slot in which the request was admitted; it identifies the request's own mark
-- Returns whether another request with the key has been billed; then nothing of this one is recorded. And remember(), which
-- removes the mark, and remembers the key as billed if this request is billed.
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
