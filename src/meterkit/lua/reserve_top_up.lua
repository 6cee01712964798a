#!lua
-- reserve_top_up: what may be bought by itself for a customer, one at a time and so many in a month.
--
-- KEYS[1] hash  the ledger of the customer's grants
-- ARGV  1 the credit's target   2 what to do: begin, paid, failed, none, bought, on or off
--       3 the id of the event that asks for it, with +N behind it for the Nth top-up; of bought the one that began it, empty: the customer did
--       4 the month   5 how many there may be in it
--       6 after how long another event takes one over that has begun and not ended (ms)   last: the caller's clock (ms)
-- The field "auto TARGET" has: the state, the month, how many there were in it, when the last began (ms), by which event
-- State  paid: another may begin; pending: one has begun; failed: the card was declined; off: the customer's wish;
--        stopped: all of a payment was refunded, maybe while one was pending, whose end changes nothing
-- Reply  of begin {1, month, event}: it has begun, now, or before by this event; {0}: not now. Of all others {0}
--include server_ms
local key, target, what, event, month, most, patience_ms = KEYS[1], unpack(ARGV, 1, 6)
local call, field, now = redis.call, 'auto ' .. target, server_ms(ARGV[#ARGV])
local value = call('HGET', key, field)
local state, of, count, began, last = string.match(value or '', '^(%l+) (%S+) (%d+) (%d+) (.*)$')
local function put(new, count_now)
  call('HSET', key, field, string.format('%s %s %.0f %.0f %s', new, of or '-', count_now or count or 0, began or 0,
    last or '-'))
  return {0}
end
if what == 'bought' then
  -- Who has bought one may be charged for another.
  local starts = not state or state == 'failed' or state == 'stopped' and last ~= event
  return starts and put('paid') or {0}
end
if what == 'on' or what == 'off' then
  return put(what == 'on' and 'paid' or 'off')
end
if what == 'begin' then
  if state == 'pending' then
    return (last == event or now - began >= patience_ms + 0) and {1, of, last} or {0}
  end
  local number = of == month and count + 1 or 1
  local was_asked = last == event or last and string.match(last, '^(.*)%+%d+$') == event
  if state ~= 'paid' or was_asked or number > most + 0 then
    return {0}
  end
  of, began, last = month, now, event
  put('pending', number)
  return {1, month, event}
end
if state == 'pending' and last == event then
  return put(what == 'failed' and 'failed' or 'paid', what == 'none' and count - 1 or count)
end
return {0}
