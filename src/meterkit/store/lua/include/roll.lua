-- roll: brings a customer's counters, if there are any, to `now` where a hold slot or the billing period has passed.
--   `seen`: the last time seen (ms); `ends`: the end of the counters' period (ms)
-- Holds move from the current slot of five minutes to the previous one, or vanish. What was counted in a
-- period that is over is added to the totals as PERIOD|FIELD (a period that became longer may close twice), with
-- PERIOD|e its end. `now` becomes the last time seen: whatever the script comes to, nothing is rolled twice.
-- Returns the end of the period that `now` is in.
local function roll(now, seen, ends)
  local counters, totals = KEYS[1], KEYS[3]
  local set, gone, closed = {'t', now}, {}, false
  local slots = math.floor(now / 300000) - math.floor(seen / 300000)
  local over = now >= ends
  local fields = redis.call('HGETALL', counters)
  local id
  for i = 1, #fields, 2 do
    if fields[i] == 'b' then
      id = fields[i + 1]
    end
  end
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    local token, kind = string.match(name, '^(....)(.)$')
    if slots > 0 and (kind == 'h' or kind == 'n') then
      set[#set + 1] = token .. string.upper(kind)
      set[#set + 1] = slots == 1 and value or 0
      set[#set + 1] = name
      set[#set + 1] = 0
    elseif over and (kind == 'i' or kind == 'g' or kind == 'c' or kind == 'o' or kind == 'p') then
      if value ~= '0' then
        redis.call('HINCRBY', totals, id .. '|' .. name, value)
        closed = true
      end
      gone[#gone + 1] = name
    end
  end
  if closed then
    redis.call('HSET', totals, id .. '|e', ends)
    redis.call('PEXPIRE', totals, 34560000000)
  end
  if #gone > 0 then
    redis.call('HDEL', counters, unpack(gone))
  end
  if over then
    local start
    start, ends = period(now)
    set[#set + 1] = 'b'
    set[#set + 1] = start
    set[#set + 1] = 'e'
    set[#set + 1] = ends
  end
  redis.call('HSET', counters, unpack(set))
  return ends
end
