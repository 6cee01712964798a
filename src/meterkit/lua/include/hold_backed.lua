-- hold_backed: holds what is asked of meters that have no ceiling and are paid with a credit.
--   fields: the counters' that were read; backed: see backing_of; current_slot: of holds
--   words, names: of fields[2] the name is words[names + 2]; write, w: where the fields are put that change
-- Returns w behind all that.
--include meter_of
--include live_holds
local function hold_backed(fields, backed, current_slot, words, names, write, w)
  for _, meter in ipairs(backed) do
    local _, _, _, _, place, quantity = unpack(meter)
    if quantity > 0 then
      local included, overage, pending, slot, held, held_before, besides = meter_of(fields[place], place)
      held, held_before = live_holds(current_slot, slot, held, held_before)
      write[w + 1], write[w + 2], w = words[names + place],
        cmsgpack.pack(FORM, included, overage, pending, current_slot, held + quantity, held_before, besides), w + 2
    end
  end
  return w
end
