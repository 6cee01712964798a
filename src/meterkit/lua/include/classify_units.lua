-- classify_units: the classes of recorded units, in this order: included, paid by grants, paid by credits, overage, over the cap.
--   included, overage: of the meter in this period; allowance: what is included (-1: unlimited); cap: the overage that
--   is billed at most (-1: no cap); pay, nth: see pay_with_grants, or nil
-- Returns how many units each class has.
local function classify_units(quantity, included, overage, allowance, cap, pay, nth)
  local within, by_grants, by_credits, over_cap = quantity, 0, 0, 0
  if allowance >= 0 then
    within = math.max(0, math.min(quantity, allowance - included))
  end
  if pay then
    by_grants, by_credits = pay(nth, quantity - within)
  end
  local beyond = quantity - within - by_grants - by_credits
  if cap >= 0 then
    over_cap = math.max(0, beyond - math.max(0, cap - overage))
  end
  return within, by_grants, by_credits, beyond - over_cap, over_cap
end
