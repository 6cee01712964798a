#!lua
-- settle_item: removes an invoice item from its queue: Stripe has it, or has refused it permanently. Idempotent.
--
-- KEYS[1] zset  items: when they are due (ms)    KEYS[2] hash  totals of the customer    KEYS[3] list  ledger of changes
-- ARGV  1 the item as in KEYS[1]    2 d: its own invoice has it; f: a later one; t: none    3 entry for the ledger of changes (JSON), or empty
--       last: the caller's clock (ms)
-- Reply ITEM_SETTLED    ITEM_SETTLED_BEFORE: nothing is done
--include append_history
--include count_item_units
--include lower_price_segment
local items_key, totals_key, history_key = unpack(KEYS)
local text, letter, entry = unpack(ARGV)
local call, item = redis.call, cjson.decode(text)
if call('ZREM', items_key, text) == 0 then
  return ITEM_SETTLED_BEFORE
end
local name = item.period .. '|' .. item.meter
call('HINCRBY', totals_key, name .. (item.by_line and 'q' or 'a'), '-' .. item.value)
call('HINCRBY', totals_key, name .. letter, item.value)
for _, part in ipairs(item.parts or {{item.label, item.value}}) do
  local label, units = part[1], tonumber(part[2])
  if item.by_line and letter == 'f' then
    count_item_units(totals_key, name .. 'n', label, units)
  elseif letter == 't' then
    count_item_units(totals_key, name .. (item.by_line and 'h' or 'n'), label, -units)
    lower_price_segment(totals_key, name, label, units)
  end
end
call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
if entry ~= '' then
  append_history(history_key, {cjson.decode(entry)})
end
return ITEM_SETTLED
