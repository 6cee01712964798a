-- follow_prices: ends the price segment of each meter that has another price than its latest units were counted at.
--   totals_key: hash; begins_ms: of the counters' period; prices: a token to the label of its price now
--   fields, names: of the meters, as settle has them; count: of the meters
-- PERIOD|METERY has the label at which the latest units of the period were counted.
--include end_price_segment
local function follow_prices(totals_key, begins_ms, prices, fields, names, count)
  local period, ended, meters, changed = string.format('%.0f', begins_ms), {}, {}, {totals_key}
  for place = 2, count + 1 do
    local name = names[SETTLE_NAMES + place]
    local token = string.match(name, '^(....)m$')
    local label = token and prices[token]
    local known = label and redis.call('HGET', totals_key, period .. '|' .. token .. 'Y')
    if known ~= label then
      changed[#changed + 1], changed[#changed + 2] = period .. '|' .. token .. 'Y', label
    end
    if known and known ~= label then
      local _, overage, pending = unpack_meter(fields[place], name)
      ended[token], meters[token] = known, {overage = overage, pending = pending}
    end
  end
  if changed[2] then
    end_price_segment(totals_key, period, meters, ended, true)
    redis.call('HSET', unpack(changed))
    redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
  end
end
