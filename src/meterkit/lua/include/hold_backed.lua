-- hold_backed: holds what is asked of meters that have no ceiling and are paid with a credit.
--   fields: the counters' that were read; backed: see backing_of; current_slot: of holds
-- Returns pairs of a field's place and what is to be written there.
--include meter_of
--include live_holds
local function hold_backed(fields, backed, current_slot)
  local changed = {}
  for _, meter in ipairs(backed) do
    local _, _, _, _, place, quantity = unpack(meter)
    if quantity > 0 then
      local included, overage, pending, slot, held, held_before, besides = meter_of(fields[place], place)
      held, held_before = live_holds(current_slot, slot, held, held_before)
      changed[#changed + 1] = {place, cmsgpack.pack(
        FORM, included, overage, pending, current_slot, held + quantity, held_before, besides)}
    end
  end
  return changed
end
