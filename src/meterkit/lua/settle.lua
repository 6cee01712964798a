#!lua
-- settle: what a request came to: gives back its holds, records what is billed and classifies it, counts
-- into rates what they have not seen yet. A numbered settlement is applied exactly once, in order.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods
-- KEYS[4] zset  customers with pending usage: `dirty` if linked, else `unlinked`
-- KEYS[5] string  the producer: the last number applied, or c<number> once it is fenced
-- KEYS[6] hash  optional: grants    KEYS[7] hash  with grants: their ledger
-- the last of KEYS string  optional: remembers an event id of the app, which counts once in 35 days
-- ARGV  1 rev   2 terms   3 the customer, as a member of KEYS[4]
--       then the fields: r t e x; i o p h H, with grants g c, a meter; n N a concurrency limit; a b d a rate
--       then the slot of the holds, the number, the caller's clock (ms)
-- terms a JSON array of whole numbers: until when the rev is valid, start and end of the period, end of the
--       next one, how long the counters must outlive the period, how long until pending usage is sealed (-1: the
--       customer is not linked; all ms); how many meters, concurrency limits, rates; then recorded, held,
--       included (-1: unlimited), report included (0/1), report overage (0/1) a meter; kind, window, refill,
--       quantity (below 0: of what was counted too much), when it was counted (ms; 0: now) a rate; last, where it
--       has to be said, an object of what grants pay (see burn), and of when the usage occurred: at (ms), own: the
--       first instant of the period that this was, dead: 1 where late usage is not recorded
-- Reply {0, now, the credits that are low now..., 'late PERIOD' where it was} ok   {1, now} duplicate   {2, last} gap   {3, last} fenced
--       {4, now, rev, state} stale   {5, now} clock   {6, field} applied but for a meter whose total
--       would pass 9 * 10^15    {7, field} numbered and not applied: the period is over and cannot be closed, as a
--       field that must be a whole number is none; whoever comes behind need not wait for its repair
local terms = cjson.decode(ARGV[2])
--include wall
--include rates
--include correct
--include period
--include turned
--include standing
--include late
local call = redis.call
local v = call('HMGET', KEYS[1], unpack(ARGV, 4, #ARGV - 3))
local seen, ends = (v[2] or 0) + 0, v[3] and v[3] + 0
local now, verdict = standing(v[1], seen, ends, false)
if verdict then
  verdict[1] = verdict[1] + 2
  return verdict
end
local number = ARGV[#ARGV - 1] + 0
local applied = redis.pcall('INCR', KEYS[5])
if type(applied) == 'table' then
  return {3, string.sub(call('GET', KEYS[5]), 2) + 0}
elseif applied ~= number then
  call(applied == 1 and 'DEL' or 'DECR', KEYS[5])
  return applied > number and {1, now} or {2, applied - 1}
elseif number == 1 then
  call('PEXPIRE', KEYS[5], 691200000)
end
-- With room from the start for what follows: a table that grows is copied each time.
local write, w = {KEYS[1], 't', now, nil, nil, nil, nil, nil, nil, nil, nil}, 3
if not ends then
  write[4], write[6], w = 'b', 'e', 7
  write[5], write[7] = period(now)
  ends = write[7]
elseif turned(now, seen, ends) then -- Others do not pay for so much as the making of these functions.
--include trim
--include whole_numbers
--include roll
  local broken
  ends, broken = roll(now, seen, ends)
  if broken then
    return {7, broken}
  end
  v = call('HMGET', KEYS[1], unpack(ARGV, 4, #ARGV - 3))
end

local f, n = 5, 9 -- v[f] is the field ARGV[3 + f]; terms[n] was read last
local age = math.floor(now / 300000) - ARGV[#ARGV - 2]
local lasting = age == 0 or age == 1 -- Else the slot of the holds is gone, or not of this store's time.
local pended, recorded, refused, keep = false, false, nil, 900000
local said = type(terms[#terms]) == 'table' and terms[#terms] or {}
local purse, late, units = said.pays and said, nil, {}
if said.at then
  late = overdue(said.at, said.own, write[4] == 'b' and write[5] or call('HGET', KEYS[1], 'b') + 0)
end
local pay, keep_grants
if purse then -- As above.
--include grants
--include recur
--include add_up
--include balance
--include put_away
--include write_grants
--include spend
--include burn
  pay, keep_grants = burn(now, purse)
end

for i = 1, terms[7] do
  local quantity, held, included = terms[n + 1], terms[n + 2], terms[n + 3]
  if held > 0 and lasting then
    local g = f + 3 + age
    write[w + 1], write[w + 2], w = ARGV[3 + g], math.max(0, (v[g] or 0) - held), w + 2
  end
  if quantity > 0 then
    recorded = true
    local covered, over = (v[f] or 0) + 0, (v[f + 1] or 0) + 0
    local paid = purse and (v[f + 5] or 0) + (v[f + 6] or 0) or 0
    if covered + over + paid + quantity > 9000000000000000 then
      refused, quantity = refused or ARGV[3 + f], 0
    elseif late then
      units[string.sub(ARGV[3 + f], 1, 4)] = quantity
      quantity = said.dead == 1 and 0 or quantity
    end
    local within = included < 0 and quantity or math.max(0, math.min(quantity, included - covered))
    local granted, credited = 0, 0
    if purse then
      granted, credited = pay(i, quantity - within)
    end
    local beyond = quantity - within - granted - credited
    if granted > 0 then
      write[w + 1], write[w + 2], w = ARGV[8 + f], granted + (v[f + 5] or 0), w + 2
    end
    if credited > 0 then
      write[w + 1], write[w + 2], w = ARGV[9 + f], credited + (v[f + 6] or 0), w + 2
    end
    if within > 0 then
      write[w + 1], write[w + 2], w = ARGV[3 + f], covered + within, w + 2
    end
    if beyond > 0 then
      write[w + 1], write[w + 2], w = ARGV[4 + f], over + beyond, w + 2
    end
    local reported = within * terms[n + 4] + beyond * terms[n + 5]
    if reported > 0 then
      pended = pended or (v[f + 2] or '0') == '0'
      write[w + 1], write[w + 2], w = ARGV[5 + f], reported + (v[f + 2] or 0), w + 2
    end
  end
  f, n = f + (purse and 7 or 5), n + 5
end
for _ = 1, terms[8] do
  if lasting then
    local g = f + age
    write[w + 1], write[w + 2], w = ARGV[3 + g], math.max(0, (v[g] or 0) - 1), w + 2
  end
  f = f + 2
end
for _ = 1, terms[9] do
  local kind, window, refill, quantity, at = unpack(terms, n + 1, n + 5)
  local slot, counted, previous = advance(kind, window, refill, now,
    (v[f] or 0) + 0, (v[f + 1] or 0) + 0, (v[f + 2] or 0) + 0)
  counted, previous = correct(kind, window, refill, now, at, slot, counted, previous, quantity)
  keep = math.max(keep, 900000 + (kind < 3 and 2 * window
    or math.min(math.ceil((counted + 1) * window / refill), 34560000000)))
  write[w + 1], write[w + 2], write[w + 3], write[w + 4] = ARGV[3 + f], slot, ARGV[4 + f], counted
  write[w + 5], write[w + 6], w = ARGV[5 + f], previous, w + 6
  f, n = f + 3, n + 5
end
local event = KEYS[purse and 8 or 6]
if event and not call('SET', event, 1, 'NX', 'PX', 3024000000) then
  return {0, now}
end
local low = purse and keep_grants() or {}
if late then
  keep_late(late, units, said.dead ~= 1)
  low[#low + 1] = 'late ' .. late
end
if v[1] ~= ARGV[1] then
  write[w + 1], write[w + 2], w = 'r', ARGV[1], w + 2
end

local linked = terms[6] >= 0
local lives = math.max(now + keep, recorded and ends + terms[5] or 0)
if pended and linked then
  lives = 9000000000000000
elseif pended then
  lives = math.max(lives, ends + 3024000000)
end
if (v[4] or 0) + 0 >= lives then
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
  call('ZADD', KEYS[4], 'NX', linked and math.min(now + terms[6], ends) or ends + 3024000000, ARGV[3])
end
if refused then
  return {6, refused}
end
return {0, now, unpack(low)}
