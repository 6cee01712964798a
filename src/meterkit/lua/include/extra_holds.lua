-- extra_holds: what each request of an allotment holds besides ceilings: of meters without one that a credit pays for,
-- and of what holds cost. See hold_backed, which holds as much for one request.
--   fields: the counters' that were read; backing: see extend_ceilings; policies, rates: see count_allowed
-- Returns them like policies, each with endless room.
--include unpack_meter
--include live_holds
local function extra_holds(fields, backing, policies, rates, current_slot)
  local found, taken = {}, {}
  local function hold(place, quantity)
    local included, overage, pending, slot, held, before, besides = unpack_meter(fields[place], place)
    held, before = live_holds(current_slot, slot, held, before)
    found[#found + 1] = {quantity, math.huge, 1, 0, {included, overage, pending, current_slot, held, before, besides}, 5, place}
  end
  for nth, asked in ipairs(backing.asked) do
    taken[asked[2]] = policies[rates + nth][1]
  end
  for i, meter in ipairs(backing.backed) do
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
