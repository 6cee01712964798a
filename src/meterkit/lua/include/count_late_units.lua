-- count_late_units: counts units that came late, as u of the period that they are of.
--   totals_key: hash; period: its first instant; units: the token of a meter to its quantity
local function count_late_units(totals_key, period, units)
  for token, quantity in pairs(units) do
    redis.call('HINCRBY', totals_key, period .. '|' .. token .. 'u', string.format('%.0f', quantity))
  end
  redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
end
