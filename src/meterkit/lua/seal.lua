#!lua
-- seal: turns a linked customer's pending usage into intents: immutable deliveries to Stripe.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] zset  dirty       KEYS[5] hash  intents  KEYS[6] zset  outbox: intents by when they are due (ms)
-- ARGV  1 rev   2 terms   3 32 hex digits that are new   4 the customer   5 the Stripe customer; empty: not
--       linked, nothing is sealed    6 a JSON array: minutes that the Stripe customer's intents of another
--       customer have (ms)
--       then a meter: its token, its event name
--       last: the caller's clock (ms)
-- terms a JSON array of whole numbers: until when the rev is valid, start and end of the period, end of the
--       next one, how long the counters must outlive the period, and live at least (all ms)
-- An intent's timestamp is a whole minute inside its period that no other intent of the meter has, at most three
-- ahead; the last one of a period is kept for what is sealed after it. Where none is free yet, the usage stays
-- pending; so does that of a meter without an event name. Where a field that must be a whole number is none,
-- nothing is done.
-- Reply {0, now, intents made, meters still pending, of each without an event name its token and what is
--       pending...}    {2, now, rev, state} stale    {3, now} clock    {4, now, field} not a whole number
local terms = cjson.decode(ARGV[2])
--include wall
--include period
--include trim
--include whole_numbers
--include roll
--include turned
--include standing
local call, num, floor = redis.call, tonumber, math.floor
local known = call('HMGET', KEYS[1], 'r', 't', 'e')
local counters, totals, events, taken, nameless = {}, {}, {}, {}, {}

local broken = whole_numbers(KEYS[1], counters, {'^[bet]$', '^....[pzigcom]$'})
  or whole_numbers(KEYS[3], totals, {'|e$', '|....[pigcomqlkdx]$'})
if broken then
  return {4, wall_ms(), broken}
end
-- Where the counters are gone, usage of periods that are over may have been taken back all the same.
local seen, ends = num(known[2]) or 0, num(known[3])
local now, verdict = standing(known[1], seen, ends, false)
if verdict then
  return verdict
end
if ARGV[5] == '' then
  call('ZREM', KEYS[4], ARGV[4])
  return {0, now, 0, 0}
end
if ends and turned(now, seen, ends) then
  ends = roll(now, seen, ends)
  counters, totals = {}, {}
  whole_numbers(KEYS[1], counters, {})
  whole_numbers(KEYS[3], totals, {})
end
for i = 7, #ARGV - 1, 2 do
  events[ARGV[i]] = ARGV[i + 1]
end
for _, minute in ipairs(cjson.decode(ARGV[6])) do
  taken[minute] = true
end
local made, left, due = 0, 0, nil

-- Stripe takes 15 digits in a value; what is beyond stays behind. Returns that.
local function intend(period, token, quantity, minute)
  local value = math.min(quantity, 999999999999999)
  made = made + 1
  local id = ARGV[3] .. '-' .. made
  call('HSET', KEYS[5], id, cjson.encode({
    v = '1', state = 'queued', customer = ARGV[4], stripe = ARGV[5], period = period, meter = token,
    event = events[token], value = string.format('%.0f', value), time = string.format('%.0f', minute / 1000),
    first = '0', attempts = '0', key = id, at = string.format('%.0f', now),
  }))
  call('ZADD', KEYS[6], now, id)
  call('HINCRBY', KEYS[3], period .. '|' .. token .. 'q', string.format('%.0f', value))
  return quantity - value
end

local function wait(until_ms)
  left, due = left + 1, math.min(due or until_ms, until_ms)
end

local function wait_for_name(token, quantity)
  wait(now + 60000)
  nameless[#nameless + 1] = token
  nameless[#nameless + 1] = string.format('%.0f', quantity)
end

for name, value in pairs(totals) do
  local period, token = string.match(name, '^(%d+)|(....)p$')
  local quantity = period and num(value) or 0
  if quantity > 0 and not events[token] then
    wait_for_name(token, quantity)
  elseif quantity > 0 then
    local minute = (floor(totals[period .. '|e'] / 60000) - 1) * 60000
    while taken[minute] do
      minute = minute - 60000
    end
    if minute > now + 180000 then -- Behind a minute that was ahead already when the period was cut short.
      wait(minute - 180000)
    else
      while quantity > 0 do
        quantity = intend(period, token, quantity, minute)
      end
      call('HDEL', KEYS[3], name)
    end
  end
end
for name, value in pairs(counters) do
  local token = string.match(name, '^(....)p$')
  local quantity = token and num(value) or 0
  if quantity > 0 and not events[token] then
    wait_for_name(token, quantity)
  elseif quantity > 0 then
    local first = math.ceil(counters['b'] / 60000) * 60000
    local last = (floor(ends / 60000) - 2) * 60000
    local minute = math.max(first, floor(now / 60000) * 60000, (counters[token .. 'z'] or 0) + 60000)
    while taken[minute] do
      minute = minute + 60000
    end
    if minute <= last and minute <= now + 180000 then
      quantity = intend(counters['b'], token, quantity, minute)
      call('HSET', KEYS[1], token .. 'p', quantity, token .. 'z', minute)
    end
    if quantity > 0 then
      wait(minute > last and ends or math.max(now + 1000, minute - 180000))
    end
  end
end
if made > 0 then
  call('PEXPIRE', KEYS[3], 34560000000)
end
if left > 0 then
  call('ZADD', KEYS[4], due, ARGV[4])
else
  call('ZREM', KEYS[4], ARGV[4])
  if ends then
    local lives = math.max(ends + terms[5], now + terms[6])
    call('HSET', KEYS[1], 'x', lives)
    call('PEXPIREAT', KEYS[1], lives)
  end
end
return {0, now, made, left, unpack(nameless)}
