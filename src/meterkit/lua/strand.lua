#!lua
-- strand: makes usage late that is pending while others change the prices of a subscription at Stripe. It can no longer
-- reach the invoice line of its price. It is counted as t of its period. Where the plan of now bills the meter, it is
-- recorded once more, as overage (or included) and as late, and is pending there: it is billed at the new price.
--
-- KEYS[1] hash  counters    KEYS[2] hash  totals    KEYS[3] list  ledger of changes
-- ARGV  1 a JSON object: meters: a token to the class that it is recorded in once more (empty: none), its name, the price
--       that ends in words; labels: of the prices that end (see mark_prices); changed: what is pending then is stamped with
--       no minute before this (ms, as text); cause: for the ledger
--       last: the caller's clock (ms)
-- Reply {0, now, of each meter that had pending usage its token and how much...}
--       the error DAMAGED: the counters are not what they must be, and nothing is done
--include server_ms
--include read_counters
--include pack_meter
--include in_order
--include mark_prices
--include enter
local counters_key, totals_key, history_key = unpack(KEYS)
local asked, now, call = cjson.decode(ARGV[1]), server_ms(ARGV[#ARGV]), redis.call
local head, meters, damaged = read_counters(counters_key)
if damaged then
  return redis.error_reply('DAMAGED the counters cannot be read: no whole numbers in field ' .. damaged)
elseif not head then
  return {0, now}
end
local period, stranded, ended = string.format('%.0f', head.begins_ms), {}, {}
for token, meter in pairs(meters) do
  local pending = asked.meters[token] and meter.pending or 0
  ended[token] = {overage = meter.overage - math.min(meter.overage, pending)}
end
mark_prices(totals_key, period, ended, asked.labels)
for _, token in ipairs(in_order(meters)) do
  local meter, terms = meters[token], asked.meters[token]
  local pending = terms and meter.pending or 0
  if pending > 0 then
    local class, name, price = unpack(terms)
    local value, is_billed = string.format('%.0f', pending), class ~= '' and meter[class] + pending <= MOST
    call('HINCRBY', totals_key, period .. '|' .. token .. 't', value)
    if is_billed then
      meter[class], meter.late = meter[class] + pending, meter.late + pending
    else
      meter.pending = 0
    end
    call('HSET', counters_key, token .. 'm', pack_meter(meter))
    enter(history_key, {{'late', string.format('%.0f', now), period .. ' ' .. value .. ' of ' .. name .. price,
      is_billed and 'billed at the price of now' or 'not billed', asked.cause}})
    stranded[#stranded + 1], stranded[#stranded + 2] = token, value
  end
end
call('HSET', totals_key, period .. '|y', asked.changed)
call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
return {0, now, unpack(stranded)}
