-- classify_units: classifies recorded units of a meter, in this order: included, paid by grants, paid by credits, overage,
-- over the cap; and counts them into the meter's extras.
--   name, included, overage, extras: of the meter in this period; quantity: above 0
--   allowance: what is included (-1: unlimited); cap: the overage that is billed at most (-1: no cap)
--   pay, nth: see pay_with_grants, or nil
--   backdated_units: where the units belong to a closed period, a table of token to units; else nil
--   drops_backdated: whether such units are not recorded
--   keeps_extras: whether extras may change even if no unit is over the cap
-- Returns how many units are recorded: none where the meter's total would pass 9 * 10^15; then how many of them each
-- class has; the extras; and whether the total would pass that.
local function classify_units(name, quantity, included, overage, extras, allowance, cap, pay, nth, backdated_units,
  drops_backdated, keeps_extras)
  -- As unpack_extras does, without the call.
  local granted, credited, late, stamped_ms, over_cap = cmsgpack.unpack(extras == '' and EMPTY_EXTRAS or extras)
  local is_too_much = included + overage + granted + credited + over_cap + quantity > MOST
  if is_too_much then
    quantity = 0
  elseif backdated_units then
    backdated_units[string.sub(name, 1, 4)] = quantity
    quantity = drops_backdated and 0 or quantity
    late = late + quantity
  end
  local within, by_grants, by_credits, over = quantity, 0, 0, 0
  if allowance >= 0 then
    within = math.max(0, math.min(quantity, allowance - included))
  end
  if pay then
    by_grants, by_credits = pay(nth, quantity - within)
  end
  local beyond = quantity - within - by_grants - by_credits
  if cap >= 0 then
    over = math.max(0, beyond - math.max(0, cap - overage))
    beyond = beyond - over
  end
  if keeps_extras or over > 0 then
    extras = cmsgpack.pack(granted + by_grants, credited + by_credits, late, stamped_ms, over_cap + over)
  end
  return quantity, within, by_grants, by_credits, beyond, over, extras, is_too_much
end
