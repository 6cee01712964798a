-- count_spend: adds up what recorded units cost, in micro-units.
--   priced: a meter each, {micro-units for each so many units, so many units, 1 where what grants and credits pay is
--   money}; of one that costs nothing {0, 1, 0}. The meter behind these counts what is spent.
-- Rounded up in sum over a period, not unit by unit.
-- Returns spend(place, quantity, overage, beyond, unincluded). With overage (units of the meter before) it adds the cost of
-- units beyond it, or of units that are not included, to the sum, and returns that. Without overage it returns the quantity
-- of the meter: the sum for the one that counts it.
--include price_of
local function count_spend(priced)
  local sum = 0
  return function(place, quantity, overage, beyond, unincluded)
    local price = priced[place - 1]
    if not overage then
      return price and quantity or place == #priced + 2 and sum or quantity
    elseif price then
      local micros, per, is_all = unpack(price)
      sum = sum + (is_all == 1 and unincluded or price_of(overage + beyond, micros, per) - price_of(overage, micros, per))
    end
    return sum
  end
end
