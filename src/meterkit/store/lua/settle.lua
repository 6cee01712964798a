#!lua
-- settle: what a request came to: gives back its holds, records what is billed and classifies it, counts
-- into rates what they have not seen yet. A numbered settlement is applied exactly once, in order.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods
-- KEYS[4] zset  customers with pending usage: `dirty` if linked, else `unlinked`
-- KEYS[5] string  the writer: the last number applied, or c<number> once it is retired
-- KEYS[6] string  optional: remembers an event id of the app, which counts once in 35 days
-- ARGV  1 rev               2 valid until (ms)     3 period start (ms)   4 period end (ms)
--       5 next period's end (ms)   6 how long the counters must outlive the period (ms)
--       7 how long until pending usage is sealed (ms); -1: the customer is not linked
--       8 the customer, as a member of KEYS[4]
--       9 meters   10 concurrency limits   11 rates (how many of each)
--       then the fields: r t e x; i o p h H a meter; n N a concurrency limit; a b d a rate
--       then the numbers: recorded, held, included (-1: unlimited), report included (0/1), report overage
--       (0/1) a meter; kind, window, refill, quantity a rate
--       then the slot of the holds, the number, the caller's clock (ms)
-- Reply {0, now} ok   {1, now} duplicate   {2, last} gap   {3, last} retired
--       {4, now, rev, state} stale   {5, now} clock   {6, field} refused: a total would pass 9 * 10^15
--include wall
--include rates
--include period
--include roll
--include standing
local call, num = redis.call, tonumber
local meters, flights, rates = num(ARGV[9]), num(ARGV[10]), num(ARGV[11])
local last = 15 + 5 * meters + 2 * flights + 3 * rates
local v = call('HMGET', KEYS[1], unpack(ARGV, 12, last))
local seen, ends = num(v[2] or 0), v[3] and num(v[3])
local now, verdict = standing(v[1], seen, ends, false)
if verdict then
  verdict[1] = verdict[1] + 2
  return verdict
end
local number = ARGV[#ARGV - 1]
local before = call('SET', KEYS[5], number, 'PX', 691200000, 'GET')
if num(before or 0) ~= number - 1 then
  -- Not the next one: put back what was there and say so.
  if before then
    call('SET', KEYS[5], before, 'PX', 691200000)
    if not num(before) then
      return {3, num(string.sub(before, 2))}
    end
    return num(before) >= num(number) and {1, now} or {2, num(before)}
  end
  call('DEL', KEYS[5])
  return {2, 0}
end
if KEYS[6] and not call('SET', KEYS[6], 1, 'NX', 'PX', 3024000000) then
  return {0, now}
end
-- With room from the start for what follows: a table that grows is copied each time.
local write, w = {KEYS[1], 't', now, nil, nil, nil, nil, nil, nil, nil, nil}, 3
if not ends then
  write[4], write[6], w = 'b', 'e', 7
  write[5], write[7] = period(now)
  ends = write[7]
elseif now >= ends or math.floor(now / 300000) > math.floor(seen / 300000) then
  ends = roll(now, seen, ends)
  v = call('HMGET', KEYS[1], unpack(ARGV, 12, last))
end

local f, n = 5, last -- v[f] is the field ARGV[11 + f]
local age = math.floor(now / 300000) - ARGV[#ARGV - 2]
local lasting = age == 0 or age == 1 -- Else the slot of the holds is gone, or not of this store's time.
local pended, recorded, keep = false, false, 900000

for _ = 1, meters do
  local quantity, held, included = num(ARGV[n + 1]), num(ARGV[n + 2]), num(ARGV[n + 3])
  if held > 0 and lasting then
    local g = f + 3 + age
    write[w + 1], write[w + 2], w = ARGV[11 + g], math.max(0, (v[g] or 0) - held), w + 2
  end
  if quantity > 0 then
    recorded = true
    local covered, over = num(v[f] or 0), num(v[f + 1] or 0)
    local within = included < 0 and quantity or math.max(0, math.min(quantity, included - covered))
    local beyond = quantity - within
    if covered + over + quantity > 9000000000000000 then
      return {6, ARGV[11 + f]}
    end
    if within > 0 then
      write[w + 1], write[w + 2], w = ARGV[11 + f], covered + within, w + 2
    end
    if beyond > 0 then
      write[w + 1], write[w + 2], w = ARGV[12 + f], over + beyond, w + 2
    end
    local reported = within * ARGV[n + 4] + beyond * ARGV[n + 5]
    if reported > 0 then
      pended = pended or (v[f + 2] or '0') == '0'
      write[w + 1], write[w + 2], w = ARGV[13 + f], reported + (v[f + 2] or 0), w + 2
    end
  end
  f, n = f + 5, n + 5
end
for _ = 1, flights do
  if lasting then
    local g = f + age
    write[w + 1], write[w + 2], w = ARGV[11 + g], math.max(0, (v[g] or 0) - 1), w + 2
  end
  f = f + 2
end
for _ = 1, rates do
  local kind, window, refill = num(ARGV[n + 1]), num(ARGV[n + 2]), num(ARGV[n + 3])
  local slot, counted, previous = advance(kind, window, refill, now,
    num(v[f] or 0), num(v[f + 1] or 0), num(v[f + 2] or 0))
  counted = math.min(counted + ARGV[n + 4], 9000000000000000)
  keep = math.max(keep, 900000 + (kind < 3 and 2 * window
    or math.min(math.ceil((counted + 1) * window / refill), 34560000000)))
  write[w + 1], write[w + 2], write[w + 3], write[w + 4] = ARGV[11 + f], slot, ARGV[12 + f], counted
  write[w + 5], write[w + 6], w = ARGV[13 + f], previous, w + 6
  f, n = f + 3, n + 4
end
if v[1] ~= ARGV[1] then
  write[w + 1], write[w + 2], w = 'r', ARGV[1], w + 2
end

local linked = num(ARGV[7]) >= 0
local lives = math.max(now + keep, recorded and ends + ARGV[6] or 0)
if pended and linked then
  lives = 9000000000000000
elseif pended then
  lives = math.max(lives, ends + 3024000000)
end
if num(v[4] or 0) >= lives then
  call('HSET', unpack(write, 1, w))
else
  write[w + 1], write[w + 2] = 'x', lives
  call('HSET', unpack(write, 1, w + 2))
  if lives == 9000000000000000 then
    call('PERSIST', KEYS[1])
  else
    call('PEXPIREAT', KEYS[1], lives)
  end
end
if pended then
  call('ZADD', KEYS[4], 'NX', linked and math.min(now + ARGV[7], ends) or ends + 3024000000, ARGV[8])
end
return {0, now}
