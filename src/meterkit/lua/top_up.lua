#!lua
-- top_up: what may be bought by itself for a customer, one at a time and so many in a month.
--
-- KEYS[1] hash  the ledger of the customer's grants
-- ARGV  1 the credit's target   2 what to do: begin, paid, failed, none, bought, on or off
--       3 the id of the event that asks for it   4 the month   5 how many there may be in it
-- The field "auto TARGET" has: the state, the month, how many there were in it, the id of the event that began the last
-- State  paid: another may begin; pending: one has begun; failed: the card was declined; off: the customer's wish
-- Reply  of begin {1, month, its number in the month}: it has begun, now or before; {0}: not now, or never
--        {2}: another one has begun and not ended; of all others {0}
local key, target, what, event, month, most = KEYS[1], unpack(ARGV, 1, 5)
local call, field = redis.call, 'auto ' .. target
local value = call('HGET', key, field)
local state, of, count, last = string.match(value or '', '^(%l+) (%S+) (%d+) (.*)$')
local function put(...)
  call('HSET', key, field, table.concat({...}, ' '))
  return {0}
end
if what == 'bought' then
  -- Who has bought one may be charged for another.
  return (not state or state == 'failed') and put('paid', of or '-', count or '0', last or '-') or {0}
end
if what == 'on' or what == 'off' then
  return put(what == 'on' and 'paid' or 'off', of or '-', count or '0', last or '-')
end
if what == 'begin' then
  if state == 'pending' and last ~= event then
    return {2}
  end
  if state == 'pending' then
    return {1, of, count + 0}
  end
  local number = of == month and count + 1 or 1
  if state ~= 'paid' or last == event or number > most + 0 then
    return {0}
  end
  put('pending', month, string.format('%.0f', number), event)
  return {1, month, number}
end
if state == 'pending' and last == event then
  local counted = what == 'none' and count - 1 or count + 0
  return put(what == 'failed' and 'failed' or 'paid', of, string.format('%.0f', counted), last)
end
return {0}
