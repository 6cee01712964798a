-- correct: a rate that was brought forward to `now`, with a quantity that it has not seen, or saw too much of (below 0).
--   kind, window, refill, slot, counted, previous: as `advance` takes and gives them
--   at: when what was seen too much or too little was counted (ms); 0: now
-- A window that does not count any more takes nothing; a bucket gives back no more than has not leaked since.
-- Returns counted, previous.
local function correct(kind, window, refill, now, at, slot, counted, previous, quantity)
  if kind == 3 then
    if quantity < 0 then
      quantity = math.min(0, quantity + math.ceil((now - at) * refill / window))
    end
    return math.max(0, math.min(counted + quantity, 9000000000000000)), previous
  end
  local was = at > 0 and math.floor(at / window) or slot
  if was == slot then
    counted = math.max(0, math.min(counted + quantity, 9000000000000000))
  elseif was == slot - 1 then
    previous = math.max(0, math.min(previous + quantity, 9000000000000000))
  end
  return counted, previous
end
