-- read_options: reads the options of a settlement.
--   options: decoded, see settle; keys: of the script; hold_slot: in which the request holds
--   fields, meter_count: see follow_prices
--   period_start_ms, period_end_ms: of the period of `now`; begins_ms: of the counters' period
-- Returns the closed period that the usage belongs to, or nil; whether usage of one is not recorded; pay and keep of
-- pay_with_grants, or nil; whether the request is a repeat; remember of end_in_flight, or nil; 1 where the reply says how
-- usage was paid, or nil.
local function read_options(options, keys, rev, now, period_start_ms, period_end_ms, begins_ms, hold_slot,
  fields, meter_count)
  local backdated_period, pay, keep_grants, is_repeat, remember
  if options.at then -- Included here, so that other requests do not pay for creating the functions.
--include find_backdated_period
    backdated_period = find_backdated_period(keys[3], options.at, options.own, begins_ms)
  end
  if options.prices then
--include follow_prices
    follow_prices(keys[3], begins_ms, options.prices, fields, ARGV, meter_count)
  end
  if options.paying then
--include pay_with_grants
    pay, keep_grants = pay_with_grants(keys[6], keys[7], options, now, period_start_ms, period_end_ms, rev ~= NO_STATE)
  end
  if options.digest then
--include end_in_flight
    is_repeat, remember = end_in_flight(keys[#keys], options.digest, options.billed == 1, hold_slot, now)
  end
  local is_dropped = options.dead == 1 or backdated_period and redis.call('HGET', keys[3], backdated_period .. '|v')
  return backdated_period, is_dropped, pay, keep_grants, is_repeat, remember, options.tells
end
