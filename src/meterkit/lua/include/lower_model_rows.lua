-- lower_model_rows: lowers what a meter's prices by model have counted. Call it before units of the meter are taken back.
--   meters: see read_counters; rows: nil, or for each price {token, token of its event, label of the price}; counters_key,
--   events, source: see sort_by_age, which sorts rows and events; back: token to the units taken back at Stripe so far;
--   totals: as read; period: its first instant, as text
-- Returns lower(spend, overage). That subtracts units of the open price segment, and their cost (see lower_spend). First come
-- the rows whose events lost pending or delivered units, then all rows in order.
--include sort_by_age
--include lower_spend
--include pack_meter
local function lower_model_rows(counters_key, meters, rows, events, source, back, totals, period)
  local before, ended = {}, {}
  sort_by_age(counters_key, source, rows, events)
  for _, row in ipairs(rows or {}) do
    local event, last, earlier, price = meters[row[2]], 0, nil, nil
    before[row[2]] = (event and event.pending or 0) - (back[row[2]] or 0)
    for label, overage in string.gmatch(totals[period .. '|' .. row[1] .. 's'] or '', '([^ ;]+) %d+ (%d+);') do
      price, last, earlier = label, tonumber(overage), last
    end
    ended[row[1]] = price == row[3] and earlier or last -- A change that Stripe refused ended no price.
  end
  return function(spend, overage)
    local function lower(token, most)
      local meter = meters[token]
      local part = meter and math.min(most, meter.overage - ended[token], overage) or 0
      if part > 0 then
        meter.overage, overage = meter.overage - part, overage - part
        meter.late = math.min(meter.late, meter.included + meter.overage)
        redis.call('HSET', counters_key, token .. 'm', pack_meter(meter))
        lower_spend(counters_key, meters, spend, token, meter, part, 0, 0)
      end
    end
    for _, row in ipairs(rows or {}) do
      local event = meters[row[2]]
      lower(row[1], before[row[2]] - (event and event.pending or 0) + (back[row[2]] or 0))
    end
    for _, row in ipairs(rows or {}) do
      lower(row[1], overage)
    end
  end
end
