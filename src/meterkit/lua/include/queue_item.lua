-- queue_item: queues an invoice item: a line for usage of its own period (by_line), or one for late units at the price at
-- which they were recorded. Late units count as a of their period until Stripe has them, then as f; those of a line as q,
-- then as d. See settle_item and count_item_units.
--   items_key: zset, by when it is due (ms); totals_key: hash
--   item: customer, stripe, subscription, currency, metered, period, meter, name, event, label, till (ms), and value as text;
--   parts: see sum_lines_by_meter
--include count_item_units
local function queue_item(items_key, totals_key, id, item, now)
  item.v, item.id, item.at = '1', id, string.format('%.0f', now)
  redis.call('ZADD', items_key, now, cjson.encode(item))
  local name = item.period .. '|' .. item.meter
  redis.call('HINCRBY', totals_key, name .. (item.by_line and 'q' or 'a'), item.value)
  for _, part in ipairs(item.parts or {{item.label, item.value}}) do
    count_item_units(totals_key, name .. (item.by_line and 'h' or 'n'), part[1], tonumber(part[2]))
  end
end
