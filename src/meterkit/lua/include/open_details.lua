-- open_details: what a settlement has besides its numbers.
--   details: decoded; keys: of the script; hold_slot: of the holds; starts, finishes: of the period of `now`; begins: of the
--   counters' (ms)
-- Returns the period that it comes too late for, or nil; whether that is not recorded; pay and keep of burn, or nil;
-- whether it is a repeat, and keep of end_in_flight; 1 where the reply says what is paid for, or nil.
local function open_details(details, keys, rev, now, starts, finishes, begins, hold_slot)
  local late, pay, keep_grants, is_repeat, keep_mark
  if details.at then -- Others do not pay for making these functions.
--include late_period
    late = late_period(keys[3], details.at, details.own, begins)
  end
  if details.paying then -- As above.
--include pay_with_grants
    pay, keep_grants = pay_with_grants(keys[6], keys[7], details, now, starts, finishes, rev ~= NO_STATE)
  end
  if details.digest then -- As above.
--include end_in_flight
    is_repeat, keep_mark = end_in_flight(keys[#keys], details.digest, details.billed == 1, hold_slot, now)
  end
  return late, details.dead == 1, pay, keep_grants, is_repeat, keep_mark, details.tells
end
