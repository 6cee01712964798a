-- extend_ceilings: what grants and credits add to a customer's ceilings.
--   key: hash, the grants; fields: the counters' that were read; starts, finishes: of the period of `now` (ms)
--   ledger, rev: see store_balance
--   backing: {mark, recurring, asked, backed}; asked: a ceiling each, {the meter's target, its place in backed or 0};
--   backed: each meter that shares a credit with an asked one, {the credit's target, cost (micro-credits a unit),
--   included, the meter's target, the place of its field, quantity asked of it if it has no ceiling; where the cost
--   depends on the model, the place of the field of what holds cost, and the most that a unit costs}
-- What is held of a meter beyond what included and its grants cover claims the credit: two requests cannot be
-- admitted on the same one. Of holds at several costs it is not known which are covered: the others cost at most what
-- all cost, and at most so many units at the highest cost.
-- Returns more(k): units that ceiling k has beyond its own; claim(k, quantity): takes note of units held there;
-- report_backed(told, t): puts for each ceiling behind the t numbers told 1 where grants or credits stood behind it in this
-- period, else 0; covered(target, place): how many units of a meter, were it the last, its grants pay, and its credit, by
-- its place in backed; when what is left changes by itself (ms). Puts into backing.taken by its place in backed what is
-- asked of a meter.
--include grant_balance
--include store_balance
--include unpack_meter
--include live_holds
--include free_credit
local function extend_ceilings(key, fields, backing, now, starts, finishes, ledger, rev)
  local kept, none, taken = grant_balance(key, backing, starts, finishes, now, false), {left = 0, was_there = 0}, {}
  store_balance(key, ledger, kept, backing, starts, now, rev)
  local function sum_of(target)
    return kept.sums[target] or none
  end
  local function held_in(place)
    local counted, _, _, slot, held, held_before = unpack_meter(fields[place], place)
    held, held_before = live_holds(math.floor(now / HOLD_SLOT_MS), slot, held, held_before)
    return held + held_before, counted
  end
  local function claim_of(meter, further)
    local _, cost, included, target, place, _, credit_place, highest = unpack(meter)
    local held, counted = held_in(place)
    local beyond = math.max(0, held + further - math.max(0, included - counted) - sum_of(target).left)
    if not credit_place then
      return beyond * cost
    end
    return math.min(beyond * highest, held_in(credit_place) + further * cost), beyond
  end
  for i, meter in ipairs(backing.backed) do
    taken[i] = meter[6]
  end
  backing.taken = taken
  local function more(k)
    local target, place = unpack(backing.asked[k])
    local meter, units = backing.backed[place], sum_of(target).left
    if meter then
      local free, uncovered = free_credit(backing.backed, place, true, sum_of(meter[1]).left, taken, claim_of)
      -- Its own holds come off as units: those that the credit has paid for above must not come off twice.
      units = units + math.floor(free / meter[2]) + uncovered
    end
    return units
  end
  local function claim(k, quantity)
    local _, place = unpack(backing.asked[k])
    taken[place] = (taken[place] or 0) + quantity
  end
  local function report_backed(told, t)
    for k, asked in ipairs(backing.asked) do
      local target, place = unpack(asked)
      local meter = backing.backed[place]
      told[t + k] = math.max(sum_of(target).was_there, meter and sum_of(meter[1]).was_there or 0)
    end
    return told
  end
  local function covered(target, place)
    local meter, units = backing.backed[place], sum_of(target).left
    if meter then
      local free = free_credit(backing.backed, place, false, sum_of(meter[1]).left, taken, claim_of)
      units = units + math.floor(free / (meter[8] or meter[2]))
    end
    return units
  end
  return more, claim, report_backed, covered, kept.changes_at
end
