#!lua
-- move_auto_top_up: moves the state of a customer's automatic top-ups of one credit. One top-up may be pending at a time,
-- and at most N may begin in a month.
--
-- KEYS[1] hash  the ledger of the customer's grants
-- ARGV  1 the credit's target   2 the step: begin, paid, failed, none, bought, on or off
--       3 id of the event that begins or ends the top-up, followed by +N for the Nth one; of bought: the event that began
--       it, or empty if the customer bought it
--       4 the month   5 the most that may begin in it
--       6 how long a top-up may be pending until another event may take it over (ms)   last: the caller's clock (ms)
-- Field "auto TARGET": state, month, number begun in that month, when the last began (ms), the event that began it
-- State  paid: another may begin; pending: one has begun; failed: the card was declined; off: the customer turned it off;
--        stopped: a payment was refunded in full, maybe while a top-up was pending, whose end changes nothing
-- Reply  {TOP_UP_BEGUN, month, event}   of begin: this event has begun the top-up, now or before
--        {TOP_UP_NOT_BEGUN}             of begin: none may begin now; and of all other steps
--include server_ms
local key, target, what, event, month, most, patience_ms = KEYS[1], unpack(ARGV, 1, 6)
local call, field, now = redis.call, 'auto ' .. target, server_ms(ARGV[#ARGV])
local value = call('HGET', key, field)
local state, of, count, began, last = string.match(value or '', '^(%l+) (%S+) (%d+) (%d+) (.*)$')
local function put(new, count_now)
  call('HSET', key, field, string.format('%s %s %.0f %.0f %s', new, of or '-', count_now or count or 0, began or 0,
    last or '-'))
  return {TOP_UP_NOT_BEGUN}
end
if what == 'bought' then
  -- A customer who has bought a top-up may be charged for another.
  local starts = not state or state == 'failed' or state == 'stopped' and last ~= event
  return starts and put('paid') or {TOP_UP_NOT_BEGUN}
end
if what == 'on' or what == 'off' then
  return put(what == 'on' and 'paid' or 'off')
end
if what == 'begin' then
  if state == 'pending' then
    return (last == event or now - began >= patience_ms + 0) and {TOP_UP_BEGUN, of, last} or {TOP_UP_NOT_BEGUN}
  end
  local number = of == month and count + 1 or 1
  local was_asked = last == event or last and string.match(last, '^(.*)%+%d+$') == event
  if state ~= 'paid' or was_asked or number > most + 0 then
    return {TOP_UP_NOT_BEGUN}
  end
  of, began, last = month, now, event
  put('pending', number)
  return {TOP_UP_BEGUN, month, event}
end
if state == 'pending' and last == event then
  return put(what == 'failed' and 'failed' or 'paid', what == 'none' and count - 1 or count)
end
return {TOP_UP_NOT_BEGUN}
