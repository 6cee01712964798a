-- release_hold: takes a quantity from the holds of the slot of five minutes that it was added to; a slot that is gone
-- gives nothing back.
--   added: that slot; current, slot, held, held_before: see live_holds
-- Returns what is held in the current slot then, and in the one before.
--include live_holds
local function release_hold(added, quantity, current, slot, held, held_before)
  held, held_before = live_holds(current, slot, held, held_before)
  if added >= current then -- Later than the current slot: from before the clock went back.
    local rest = added > current and math.max(0, quantity - held) or 0
    return math.max(0, held - quantity), math.max(0, held_before - rest)
  elseif added == current - 1 then
    return held, math.max(0, held_before - quantity)
  end
  return held, held_before
end
