-- hold_backed: holds the quantity of meters that have no ceiling and are paid with a credit. Where the cost of a meter
-- depends on the model, it holds that cost too.
--   fields, words, name_offset: what was read of the counters; the name of fields[place] is words[name_offset + place]
--   options: see extend_ceilings; hset, hset_count: arguments of the HSET of all changed fields, and how many there are
-- Returns hset_count.
--include unpack_meter
--include live_holds
local function hold_backed(fields, options, current_slot, words, name_offset, hset, hset_count)
  local function hold(place, quantity)
    local included, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], place)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    held = math.min(held + quantity, MOST)
    hset[hset_count + 1] = words[name_offset + place]
    hset[hset_count + 2] = cmsgpack.pack(FORM, included, overage, pending, current_slot, held, held_before, extras)
    hset_count = hset_count + 2
  end
  for i, meter in ipairs(options.backed) do
    local _, cost, _, _, place, quantity, cost_place = unpack(meter)
    if quantity > 0 then
      hold(place, quantity)
    end
    if cost_place and options.taken[i] > 0 then
      hold(cost_place, math.min(options.taken[i] * cost, MOST))
    end
  end
  return hset_count
end
