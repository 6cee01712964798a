#!lua
-- settle_item: takes an invoice item of late usage out of the queue, as Stripe has it, or refuses it for good. Idempotent.
--
-- KEYS[1] zset  items, by when they are due (ms)    KEYS[2] hash  totals of the customer    KEYS[3] list  ledger of changes
-- ARGV  1 the item, as it is in KEYS[1]    2 f: Stripe has it, or t: nothing bills it    3 the entry of the ledger (JSON)
--       last: the caller's clock (ms)
-- Reply 1 done    0 it was settled before
--include append_history
--include count_item_units
--include lower_price_segment
local items_key, totals_key, history_key = unpack(KEYS)
local text, letter, entry = unpack(ARGV)
local call, item = redis.call, cjson.decode(text)
if call('ZREM', items_key, text) == 0 then
  return 0
end
local name = item.period .. '|' .. item.meter
call('HINCRBY', totals_key, name .. 'a', '-' .. item.value)
call('HINCRBY', totals_key, name .. letter, item.value)
if letter == 't' then
  count_item_units(totals_key, name, item.label, -item.value)
  lower_price_segment(totals_key, name, item.label, tonumber(item.value))
end
call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
append_history(history_key, {cjson.decode(entry)})
return 1
