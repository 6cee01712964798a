-- extend_ceilings: sums the units that grants and credits add to a customer's ceilings.
--   key: hash, the grants; ledger, rev: see store_balance; fields: what was read of the counters
--   options.asked: a ceiling each: {the meter's target, its place in `backed` or 0}
--   options.backed: each meter that shares a credit with one of these: {target of the credit, cost (micro-credits a unit),
--   included, target of the meter, place of its field, quantity needed of it if it has no ceiling}; where the cost
--   depends on the model, also the place of the field that holds cost, and the highest cost of a unit
--   options: also mark, recurring and so on, see grant_balance
--   start_ms, end_ms: of the period of `now`
-- Held units beyond what included units and grants cover claim the credit, so no two requests are admitted on the same
-- credit. Where held units have different costs, it is not known which of them are covered. The others cost at most what
-- all of them cost, and at most their number times the highest cost.
-- Returns a table, where k is a ceiling and place a place in `backed`:
--   count: how many ceilings, the first ones, may have grants or credits; changes_at: when balances change next (ms)
--   units_of(k): units beyond the ceiling's own
--   claim(k, quantity): notes that the request holds so many units of it
--   covered(target, place): units of a meter that its grants and its credit pay if it comes after all others
--   append_to(refusal, count): appends for each ceiling 1 where a grant or credit existed in this period, else 0
-- Sets options.taken: place to the quantity that the request needs of the meter.
--include grant_balance
--include store_balance
--include unpack_meter
--include live_holds
--include free_credit
local function extend_ceilings(key, fields, options, now, start_ms, end_ms, ledger, rev)
  local balances, no_sum, taken = grant_balance(key, options, start_ms, end_ms, now, false), {left = 0, was_there = 0}, {}
  store_balance(key, ledger, balances, options, start_ms, now, rev)
  local function sum_of(target)
    return balances.sums[target] or no_sum
  end
  local function held_in(place)
    local counted, _, _, slot, held, held_before = unpack_meter(fields[place], place)
    held, held_before = live_holds(math.floor(now / HOLD_SLOT_MS), slot, held, held_before)
    return held + held_before, counted
  end
  local function claim_of(meter, more_units)
    local _, cost, included, target, place, _, cost_place, highest_cost = unpack(meter)
    local held, counted = held_in(place)
    local uncovered = math.max(0, held + more_units - math.max(0, included - counted) - sum_of(target).left)
    if not cost_place then
      return uncovered * cost
    end
    return math.min(uncovered * highest_cost, held_in(cost_place) + more_units * cost), uncovered
  end
  for i, meter in ipairs(options.backed) do
    taken[i] = meter[6]
  end
  options.taken = taken
  local backing = {count = #options.asked, changes_at = balances.changes_at}
  function backing.units_of(k)
    local target, place = unpack(options.asked[k])
    local meter, units = options.backed[place], sum_of(target).left
    if meter then
      local free, uncovered = free_credit(options.backed, place, true, sum_of(meter[1]).left, taken, claim_of)
      -- The meter's own holds are deducted as units: what the credit has paid above must not be deducted twice.
      units = units + math.floor(free / meter[2]) + uncovered
    end
    return units
  end
  function backing.claim(k, quantity)
    local _, place = unpack(options.asked[k])
    taken[place] = (taken[place] or 0) + quantity
  end
  function backing.append_to(refusal, count)
    for k, asked in ipairs(options.asked) do
      local target, place = unpack(asked)
      local meter = options.backed[place]
      refusal[count + k] = math.max(sum_of(target).was_there, meter and sum_of(meter[1]).was_there or 0)
    end
  end
  function backing.covered(target, place)
    local meter, units = options.backed[place], sum_of(target).left
    if meter then
      local free = free_credit(options.backed, place, false, sum_of(meter[1]).left, taken, claim_of)
      units = units + math.floor(free / (meter[8] or meter[2]))
    end
    return units
  end
  return backing
end
