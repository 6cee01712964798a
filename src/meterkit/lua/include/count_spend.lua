-- count_spend: adds up what recorded units cost, in micro-units.
--   terms, at: how many of the rates, the last, count it, too; then a meter each: micro-units for each so many units, so
--   many units, 1 where what grants and credits pay is money; of one that costs nothing 0, 1, 0
-- Rounded up in sum over a period, not unit by unit.
-- Returns spend(nth, overage, beyond, unincluded), which adds the cost of units of the nth meter beyond its overage, or of
-- units that are not included, and returns the sum; and how many rates count it.
--include cost_of_units
local function count_spend(terms, at)
  local sum, windows = 0, nil
  windows, at = struct.unpack('<d', terms, at)
  return function(nth, overage, beyond, unincluded)
    local micros, per, is_all = struct.unpack('<ddd', terms, at + 24 * (nth - 1))
    sum = sum + (is_all == 1 and unincluded or cost_of_units(overage + beyond, micros, per) - cost_of_units(overage, micros, per))
    return sum
  end, windows
end
