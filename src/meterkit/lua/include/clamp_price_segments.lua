-- clamp_price_segments: takes corrected units off the ended price segments of a period, youngest first. Otherwise units that
-- are recorded later would have the price of an ended segment. See end_price_segment.
--   by_lines: false: events bill the usage, and nothing is done; totals_key: hash; totals: as read; period: its first
--   instant, as text; token: of the meter; meter: its counters, with the units that are left; sealed_in: see sealed_units
local function clamp_price_segments(by_lines, totals_key, totals, period, token, meter, sealed_in)
  local entries, name = '', period .. '|' .. token
  local sent = meter.pending + sealed_in(token, 'qlkdx')
  for label, sealed, overage in string.gmatch(by_lines and totals[name .. 's'] or '', '([^ ;]+) (%d+) (%d+);') do
    entries = entries .. string.format('%s %.0f %.0f;', label, math.min(tonumber(sealed), sent),
      math.min(tonumber(overage), meter.overage))
  end
  if entries ~= '' then
    redis.call('HSET', totals_key, name .. 's', entries)
  end
end
