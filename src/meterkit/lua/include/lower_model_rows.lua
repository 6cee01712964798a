-- lower_model_rows: what prices by model count of a meter, before units of it are taken back.
--   meters: as read_counters gives them; rows: each of its prices: {token, token of the event that it goes under, the
--   label of its price} or nil; back: by token what is taken back at Stripe so far; totals: as read; period: first
--   instant of the period, as text
-- Returns lower(counters_key, spend, overage): takes off so many units of the open price segment: where their events lost
-- pending or delivered ones, and the rest in the order of the rows; and what they did cost, see lower_spend.
--include lower_spend
--include pack_meter
local function lower_model_rows(meters, rows, back, totals, period)
  local before, ended = {}, {}
  for _, row in ipairs(rows or {}) do
    local event, last, earlier, price = meters[row[2]], 0, nil, nil
    before[row[2]] = (event and event.pending or 0) - (back[row[2]] or 0)
    for label, overage in string.gmatch(totals[period .. '|' .. row[1] .. 's'] or '', '([^ ;]+) %d+ (%d+);') do
      price, last, earlier = label, tonumber(overage), last
    end
    ended[row[1]] = price == row[3] and earlier or last -- A change that Stripe refused ended no price.
  end
  return function(counters_key, spend, overage)
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
