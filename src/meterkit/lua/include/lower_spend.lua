-- lower_spend: subtracts the cost of corrected units from the spend of a period.
--   counters_key: hash; meters: see read_counters; spend: nil, or {token: of the meter that counts the spend; prices: by
--   token, see cost_of_units}; token, meter: of the units, after the correction; overage, credited, granted: units of each
--   class that are taken back
--include cost_of_units
--include pack_meter
local function lower_spend(counters_key, meters, spend, token, meter, overage, credited, granted)
  local price, counted = spend and spend.prices[token], spend and meters[spend.token]
  if price and counted then
    local micros, per, is_all = unpack(price)
    local cost = cost_of_units(meter.overage + overage, micros, per) - cost_of_units(meter.overage, micros, per)
    cost = is_all == 1 and overage + credited + granted or cost
    local beyond = math.min(cost, counted.overage)
    counted.overage, counted.included = counted.overage - beyond, math.max(0, counted.included - cost + beyond)
    redis.call('HSET', counters_key, spend.token .. 'm', pack_meter(counted))
  end
end
