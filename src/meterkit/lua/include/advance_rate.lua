-- advance_rate: brings a rate forward to `now`. Nothing is written.
--   kind: 1 a sliding window, FIXED_WINDOW, or TOKEN_BUCKET
--   window: of a window its length (ms); of a bucket the denominator of the refill per ms; refill: the numerator
--   of a window: number of the window that was counted last, counted in it, counted in the one before
--   of a bucket: until when it is accounted for (ms), whole units owed, rest owed (in units / window)
-- Returns these three at `now`, and the units used: all whole numbers below 2^53. What was counted after `now`, before the
-- clock went back, is forgotten: the window or bucket restarts.
local function advance_rate(kind, window, refill, now, slot, counted, previous)
  if kind == TOKEN_BUCKET then
    local accounted_ms, owed, rest_owed = slot, counted, previous
    local passed = now - accounted_ms
    local whole = math.floor(refill / window)
    local rest = refill - whole * window
    -- A rest that was owed at another refill is less than a unit of this one, too.
    rest_owed = math.min(rest_owed, window - 1)
    if passed < 0 or passed * refill / window >= owed + 2 then
      return now, 0, 0, 0
    end
    local leaked = math.floor(rest * passed / window)
    rest_owed = rest_owed - (rest * passed - leaked * window)
    owed = owed - whole * passed - leaked
    if rest_owed < 0 then
      owed = owed - 1
      rest_owed = rest_owed + window
    end
    if owed < 0 then
      owed, rest_owed = 0, 0
    end
    return now, owed, rest_owed, rest_owed > 0 and owed + 1 or owed
  end
  local current = math.floor(now / window)
  if slot ~= current then
    previous = slot == current - 1 and counted or 0
    counted = 0
  end
  if kind == FIXED_WINDOW or previous == 0 then
    return current, counted, previous, counted
  end
  -- The part of the previous window that still counts, rounded up. Windows beyond a day move in
  -- whole seconds, so that every product stays below 2^53.
  local left = (current + 1) * window - now
  if window > LONG_WINDOW_MS then
    left = math.ceil(left / 1000)
    window = window / 1000
  end
  local whole = math.floor(previous / window)
  local still_counted = whole * left + math.ceil((previous - whole * window) * left / window)
  return current, counted, previous, counted + still_counted
end
