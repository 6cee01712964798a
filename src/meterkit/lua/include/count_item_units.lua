-- count_item_units: counts the units that invoice items or lines bill, by price: `LABEL UNITS;` for each price.
--   totals_key: hash; field: PERIOD|METERn for items of late usage, PERIOD|METERh for lines; label: of the price
--   units: below 0: nothing bills them any more
local function count_item_units(totals_key, field, label, units)
  local entries, total = '', units
  for known, counted in string.gmatch(redis.call('HGET', totals_key, field) or '', '([^ ;]+) (%d+);') do
    if known == label then
      total = total + counted
    else
      entries = entries .. known .. ' ' .. counted .. ';'
    end
  end
  if total > 0 then
    entries = entries .. label .. string.format(' %.0f;', total)
  end
  redis.call('HSET', totals_key, field, entries)
end
