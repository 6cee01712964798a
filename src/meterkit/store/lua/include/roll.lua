-- roll: brings a customer's counters, if there are any, to `now` where a hold slot or the billing period has passed.
--   `seen`: the last time seen (ms); `ends`: the end of the counters' period (ms)
--   `start`, `stop`, `stop_next`: the bounds of this period and the end of the next (ms)
-- Holds move from the current slot of five minutes to the previous one, or vanish. What was counted in a
-- period that is over moves to the totals as PERIOD|FIELD, with PERIOD|e its end. `now` becomes the last time
-- seen, so that whatever the script comes to, nothing is rolled twice.
-- Returns the end of the period that `now` is in.
local function roll(now, seen, ends, start, stop, stop_next)
  local counters, totals = KEYS[1], KEYS[3]
  local set, gone, closed = {'t', now}, {}, {}
  local slots = math.floor(now / 300000) - math.floor(seen / 300000)
  local over = now >= ends
  local fields = redis.call('HGETALL', counters)
  local period
  for i = 1, #fields, 2 do
    if fields[i] == 'b' then
      period = fields[i + 1]
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
        closed[#closed + 1] = period .. '|' .. name
        closed[#closed + 1] = value
      end
      gone[#gone + 1] = name
    end
  end
  if #closed > 0 then
    closed[#closed + 1] = period .. '|e'
    closed[#closed + 1] = ends
    redis.call('HSET', totals, unpack(closed))
    redis.call('PEXPIRE', totals, 34560000000)
  end
  if #gone > 0 then
    redis.call('HDEL', counters, unpack(gone))
  end
  if over then
    local inside = now < stop
    ends = inside and stop or tonumber(stop_next)
    set[#set + 1] = 'b'
    set[#set + 1] = inside and start or stop
    set[#set + 1] = 'e'
    set[#set + 1] = ends
  end
  redis.call('HSET', counters, unpack(set))
  return ends
end
