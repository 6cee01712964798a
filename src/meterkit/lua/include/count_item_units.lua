-- count_item_units: counts the units that invoice items bill, by price, in PERIOD|METERn: `LABEL UNITS;` for each price.
--   totals_key: hash; name: PERIOD|METER; label: of the price; units: below 0: no item bills them any more
local function count_item_units(totals_key, name, label, units)
  local entries, total = '', units
  for known, counted in string.gmatch(redis.call('HGET', totals_key, name .. 'n') or '', '([^ ;]+) (%d+);') do
    if known == label then
      total = total + counted
    else
      entries = entries .. known .. ' ' .. counted .. ';'
    end
  end
  if total > 0 then
    entries = entries .. label .. string.format(' %.0f;', total)
  end
  redis.call('HSET', totals_key, name .. 'n', entries)
end
