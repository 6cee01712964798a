-- clamp_price_segments: takes corrected units off the ended price segments of a period, youngest first. Otherwise units that
-- are recorded later would have the price of an ended segment. See end_price_segment.
--   by_lines: false: events bill the usage, and nothing is done; totals_key: hash; totals: as read; name: PERIOD|METER;
--   overage: units of the meter that are left
local function clamp_price_segments(by_lines, totals_key, totals, name, overage)
  local entries = ''
  for label, sealed, before in string.gmatch(by_lines and totals[name .. 's'] or '', '([^ ;]+) (%d+) (%d+);') do
    entries = entries .. string.format('%s %s %.0f;', label, sealed, math.min(tonumber(before), overage))
  end
  if entries ~= '' then
    redis.call('HSET', totals_key, name .. 's', entries)
  end
end
