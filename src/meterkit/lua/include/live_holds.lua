-- live_holds: what is held in the current slot of five minutes, and in the one before; older holds have expired.
--   slot, held, held_before: the slot in which something was held last, what was held in it, and in the one before
-- Holds of later slots, from before the clock went back, count in the current one.
local function live_holds(current, slot, held, held_before)
  if slot == current then
    return held, held_before
  elseif slot > current then
    return held + held_before, 0
  end
  return 0, slot == current - 1 and held or 0
end
