-- live_holds: what is held in the slot of five minutes that is on, and in the one before; older holds are gone.
--   slot, held, held_before: as they were counted
local function live_holds(current, slot, held, held_before)
  if slot == current then
    return held, held_before
  end
  return 0, slot == current - 1 and held or 0
end
