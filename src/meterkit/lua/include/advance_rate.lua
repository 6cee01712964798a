-- advance_rate: a rate brought forward to `now`. Nothing is written.
--   kind 1 sliding window, 2 fixed window: (a, b, c) = slot, counted in it, counted in the one before
--   kind 3 token bucket: (a, b, c) = accounted until (ms), whole units owed, rest owed in 1/window units
--   window: ms (1, 2), or the denominator of the refill per ms (3); refill: its numerator (3)
-- Returns a, b, c and the units used, all whole numbers below 2^53.
local function advance_rate(kind, window, refill, now, a, b, c)
  if kind == BUCKET then
    local passed = now - a
    local whole = math.floor(refill / window)
    local rest = refill - whole * window
    -- A rest that was owed at another refill is less than a unit of this one, too.
    c = math.min(c, window - 1)
    if passed * refill / window >= b + 2 then
      return now, 0, 0, 0
    end
    local leaked = math.floor(rest * passed / window)
    c = c - (rest * passed - leaked * window)
    b = b - whole * passed - leaked
    if c < 0 then
      b, c = b - 1, c + window
    end
    if b < 0 then
      b, c = 0, 0
    end
    return now, b, c, c > 0 and b + 1 or b
  end
  local slot = math.floor(now / window)
  if a ~= slot then
    b, c = 0, a == slot - 1 and b or 0
  end
  if kind == FIXED or c == 0 then
    return slot, b, c, b
  end
  -- The part of the previous window that still counts, rounded up. Windows beyond a day move in
  -- whole seconds, so that every product stays below 2^53.
  local left = (slot + 1) * window - now
  if window > LONG_WINDOW_MS then
    left, window = math.ceil(left / 1000), window / 1000
  end
  local whole = math.floor(c / window)
  return slot, b, c, b + whole * left + math.ceil((c - whole * window) * left / window)
end
