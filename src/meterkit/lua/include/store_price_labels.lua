-- store_price_labels: stores the label of the price that a meter had when the period began, when that price ends.
--   totals_key: hash; period: its first instant, as text; labels: token to label
local function store_price_labels(totals_key, period, labels)
  for token, label in pairs(labels) do
    redis.call('HSETNX', totals_key, period .. '|' .. token .. 'y', label)
    redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
  end
end
