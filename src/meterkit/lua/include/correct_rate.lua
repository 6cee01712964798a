-- correct_rate: brings a rate forward to `now`, and adds a quantity that it has not counted, or subtracts one (below 0)
-- that it has counted too much.
--   packed, field: the rate's, and its name; kind, window, refill: see advance_rate
--   counted_ms: when the quantity that was wrong was counted; 0: now
-- A window that has ended, or that the clock went back before, is not changed. A bucket loses at most what has not leaked
-- since.
-- Returns the field, and for how long it may matter (ms).
--include unpack_rate
--include advance_rate
local function correct_rate(packed, field, kind, window, refill, quantity, counted_ms, now)
  local slot, counted, previous = unpack_rate(packed, field)
  slot, counted, previous = advance_rate(kind, window, refill, now, slot, counted, previous)
  local matters_ms = 2 * window
  local its_slot = counted_ms > 0 and math.floor(counted_ms / window) or slot
  if kind == TOKEN_BUCKET then
    if quantity < 0 then
      local leaked = counted_ms > now and -quantity or math.ceil((now - counted_ms) * refill / window)
      quantity = math.min(0, quantity + leaked)
    end
    counted = math.max(0, math.min(counted + quantity, MOST))
    matters_ms = math.min(math.ceil((counted + 1) * window / refill), FOUR_HUNDRED_DAYS_MS)
  elseif its_slot == slot then
    counted = math.max(0, math.min(counted + quantity, MOST))
  elseif its_slot == slot - 1 then
    previous = math.max(0, math.min(previous + quantity, MOST))
  end
  return cmsgpack.pack(FORM, slot, counted, previous), matters_ms
end
