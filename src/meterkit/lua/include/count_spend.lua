-- count_spend: sums the cost of recorded units in micro-units. The sum of a period is rounded up, not the cost of each unit.
--   terms, at: the prices in the terms: how many of the rates, the last ones, count what is spent; then each meter:
--   micro-units of so many units, so many units, 1 where units that are not included cost one micro-unit each: they are
--   money; a meter that costs nothing has 0, 1, 0
-- Returns add_cost(nth, overage, beyond, unincluded), which adds what units of the nth meter beyond its overage cost, and
-- returns the sum; and how many rates count it.
--include cost_of_units
local function count_spend(terms, at)
  local spent, rate_count = 0, nil
  rate_count, at = struct.unpack('<d', terms, at)
  local function add_cost(nth, overage, beyond, unincluded)
    local micros, per_units, is_money = struct.unpack('<ddd', terms, at + PRICE_BYTES * (nth - 1))
    local cost
    if is_money == 1 then
      cost = unincluded
    else
      cost = cost_of_units(overage + beyond, micros, per_units) - cost_of_units(overage, micros, per_units)
    end
    spent = spent + cost
    return spent
  end
  return add_cost, rate_count
end
