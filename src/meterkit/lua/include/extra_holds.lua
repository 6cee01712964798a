-- extra_holds: lists what each request of an allotment holds besides ceilings: units of meters without a ceiling that a
-- credit pays for, and the cost of holds. hold_backed does this for one request.
--   fields: of the counters, as read; options: see extend_ceilings; policies, rate_count: see count_allowed
-- Returns them in the form of policies, with unlimited room.
--include unpack_meter
--include live_holds
local function extra_holds(fields, options, policies, rate_count, current_slot)
  local found, taken = {}, {}
  local function hold(place, quantity)
    local included, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], place)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    local numbers = {included, overage, pending, current_slot, held, held_before, extras}
    found[#found + 1] = {quantity, math.huge, 1, 0, numbers, 5, place}
  end
  for nth, asked in ipairs(options.asked) do
    taken[asked[2]] = policies[rate_count + nth][1]
  end
  for i, meter in ipairs(options.backed) do
    local _, cost, _, _, place, quantity, cost_place = unpack(meter)
    if quantity > 0 then
      hold(place, quantity)
    end
    if cost_place and (taken[i] or quantity) > 0 then
      hold(cost_place, (taken[i] or quantity) * cost)
    end
  end
  return found
end
