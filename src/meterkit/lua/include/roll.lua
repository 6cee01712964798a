-- roll: brings a customer's counters to `now` where they have turned.
-- Holds move from the current slot of five minutes to the previous one, or vanish. A period is over at its end, or
-- where the caller's begins two minutes after it did, or later: the subscription is another one. What was counted in
-- it is added to the totals as PERIOD|FIELD, with PERIOD|e its end, behind all minutes that deliveries were stamped
-- with; the next one begins no earlier. A period that merely ends at another time keeps its counts. `now` becomes the
-- last time seen: whatever the script comes to, nothing is rolled twice. Returns the end of the period of `now`; or
-- nil and the name of a field that is no whole number, though it must be: then nothing is done.
local function roll(now, seen, ends)
  local counters, totals = KEYS[1], KEYS[3]
  local start, finish = period(now)
  local set, gone, closed, stamped, fields = {'t', now}, {}, false, 0, {}
  local slots = math.floor(now / 300000) - math.floor(seen / 300000)
  local broken, id = whole_numbers(counters, fields, {'^b$', '^....[igcopmz]$'}), fields.b
  local over = not broken and (now >= ends or start >= id + 120000)
  broken = broken or over and whole_numbers(totals, {}, {'|e$', '^' .. id .. '|....[igcopm]$'})
  if broken then
    return nil, broken
  end
  for name, value in pairs(fields) do
    if string.find(name, '^....z$') then
      stamped = math.max(stamped, value)
    end
    local token, kind = string.match(name, '^(....)(.)$')
    if slots > 0 and (kind == 'h' or kind == 'n') then
      set[#set + 1] = token .. string.upper(kind)
      set[#set + 1] = slots == 1 and value or 0
      set[#set + 1] = name
      set[#set + 1] = 0
    elseif over and kind and string.find('igcopm', kind, 1, true) then
      if value ~= '0' then
        redis.call('HINCRBY', totals, id .. '|' .. name, value)
        closed = true
      end
      gone[#gone + 1] = name
    end
  end
  if over then
    local till = now >= ends and ends or math.min(ends, math.max(start, stamped + 120000))
    if closed then
      redis.call('HSET', totals, id .. '|e', till)
      redis.call('PEXPIRE', totals, 34560000000)
    end
    trim(totals, now)
    set[#set + 1] = 'b'
    set[#set + 1] = math.max(start, till)
  end
  if #gone > 0 then
    redis.call('HDEL', counters, unpack(gone))
  end
  set[#set + 1] = 'e'
  set[#set + 1] = finish
  redis.call('HSET', counters, unpack(set))
  return finish
end
