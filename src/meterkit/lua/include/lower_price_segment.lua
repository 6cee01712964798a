-- lower_price_segment: takes units that nothing bills any more off the ended price segments of a period; see
-- end_price_segment.
--   totals_key: hash; name: PERIOD|METER; label: of the price at which they were recorded; units: their number
local function lower_price_segment(totals_key, name, label, units)
  local entries, taken, overage_before = '', 0, 0
  for known, sealed, overage in string.gmatch(redis.call('HGET', totals_key, name .. 's') or '', '([^ ;]+) (%d+) (%d+);') do
    if known == label then
      taken = taken + math.min(units - taken, overage - overage_before)
    end
    overage_before = tonumber(overage)
    entries = entries .. string.format('%s %s %.0f;', known, sealed, overage - taken)
  end
  if entries ~= '' then
    redis.call('HSET', totals_key, name .. 's', entries)
  end
end
