-- take_number: takes a settlement's number if it is the next one of its producer.
--   producer_key: string, the last number applied, or c<number> once the producer is fenced
--   number: below 0: the producer goes on at this number, although there is no record of those before
-- Returns nil, or the reply that ends the script: {DUPLICATE, now}, {GAP, last} or {FENCED, last}.
local function take_number(producer_key, number, now)
  local taken = redis.pcall('INCR', producer_key)
  if type(taken) == 'table' then
    return {FENCED, string.sub(redis.call('GET', producer_key), 2) + 0}
  elseif taken == 1 and number < 0 then
    redis.call('SET', producer_key, string.format('%.0f', -number), 'PX', EIGHT_DAYS_MS)
  elseif taken ~= number then
    redis.call(taken == 1 and 'DEL' or 'DECR', producer_key)
    return taken > number and {DUPLICATE, now} or {GAP, taken - 1}
  elseif number == 1 then
    redis.call('PEXPIRE', producer_key, EIGHT_DAYS_MS)
  end
  return nil
end
