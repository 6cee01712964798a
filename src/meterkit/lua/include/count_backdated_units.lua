-- count_backdated_units: counts units recorded after their period closed, as u of that period.
--   totals_key: hash; period: its first instant; units: the token of a meter to its quantity
local function count_backdated_units(totals_key, period, units)
  for token, quantity in pairs(units) do
    redis.call('HINCRBY', totals_key, period .. '|' .. token .. 'u', string.format('%.0f', quantity))
  end
  redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
end
