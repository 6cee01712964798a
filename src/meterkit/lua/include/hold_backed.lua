-- hold_backed: holds what is asked of meters that have no ceiling and are paid with a credit; and of those whose cost
-- depends on the model what the quantity costs.
--   fields: the counters' that were read; backing: see extend_ceilings; current_slot: of holds
--   words, names: of fields[2] the name is words[names + 2]; write, w: where the fields are put that change
-- Returns w behind all that.
--include unpack_meter
--include live_holds
local function hold_backed(fields, backing, current_slot, words, names, write, w)
  local function hold(place, quantity)
    local included, overage, pending, slot, held, held_before, besides = unpack_meter(fields[place], place)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    write[w + 1], write[w + 2], w = words[names + place], cmsgpack.pack(FORM, included, overage, pending, current_slot,
      math.min(held + quantity, MOST), held_before, besides), w + 2
  end
  for i, meter in ipairs(backing.backed) do
    local _, cost, _, _, place, quantity, credit_place = unpack(meter)
    if quantity > 0 then
      hold(place, quantity)
    end
    if credit_place and backing.taken[i] > 0 then
      hold(credit_place, math.min(backing.taken[i] * cost, MOST))
    end
  end
  return w
end
