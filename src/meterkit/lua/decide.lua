#!lua
-- decide: whether a customer may, over any number of rates, ceilings and concurrency limits at once.
-- If all allow, everything is counted and held; if any refuses, nothing is.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods
-- KEYS[4] hash  optional: grants
-- ARGV  1 rev   2 terms   3 mode: d decide, f decide whatever the rev, c check only, v confirm the rev only,
--       h hold what is held already, whatever is left, s count and hold also what would be refused, and say so
--       then the fields: r t e x; a b d a rate; i o h H a ceiling; n N a concurrency limit; i a recorded meter;
--       with grants i h H for each other meter that shares a credit
--       last: the caller's clock (ms)
-- terms a JSON array of whole numbers: until when the rev is valid, start and end of the period, end of the
--       next one, how long the counters must live (all ms); how many rates, ceilings, concurrency limits, meters
--       recorded here; then kind, window, limit, refill, needed, taken a rate; included, beyond (-1: deny),
--       needed, held a ceiling; limit a concurrency limit; quantity a recorded meter; last, with grants, what
--       grants and credits stand behind (see room)
-- Reply {0, now, n, remaining, before}   allowed; n: the policy nearest to exhaustion, from 1; 0 for none;
--                                before: its previous (windows) or rest (bucket), as below
--       {1, now, ends, x, y, z, ...}   refused; the end of the period (ms), 0 where none has begun; then three
--                                numbers a policy: counted, previous, 0 (windows); owed whole, rest, 0 (bucket);
--                                left but for holds, held in this slot, in the last one (ceiling);
--                                in flight, 0, 0 (concurrency); last, with grants, a ceiling each: 1 where
--                                grants or credits stood behind it in this period, else 0
--       {2, now, rev, state}     stale     {3, now} clock     {4, now} the rev is confirmed
--       {5, now, ends, ...}      as 1, but counted and held all the same
--       the error DAMAGED        the period is over and cannot be closed: nothing is done
local terms = cjson.decode(ARGV[2])
--include wall
--include rates
--include period
--include turned
--include standing
local call = redis.call
local mode = ARGV[3]
local v = call('HMGET', KEYS[1], unpack(ARGV, 4, #ARGV - 1))
local seen, ends = (v[2] or 0) + 0, v[3] and v[3] + 0
local now, verdict = standing(v[1], seen, ends, mode == 'f')
if verdict then
  return verdict
elseif mode == 'v' then
  return {4, now}
end
local take = mode ~= 'c'
if ends and turned(now, seen, ends) then -- Others do not pay for so much as the making of these functions.
--include trim
--include whole_numbers
--include roll
  local broken
  ends, broken = roll(now, seen, ends)
  if broken then
    return redis.error_reply('DAMAGED the period cannot be closed: no whole number in field ' .. broken)
  end
  v = call('HMGET', KEYS[1], unpack(ARGV, 4, #ARGV - 1))
end
local more, claim, had
local purse = KEYS[4] and terms[#terms]
if purse then -- As above.
--include grants
--include recur
--include add_up
--include balance
--include room
  more, claim, had = room(now, v, purse)
end
local refused = false
local nearest, nearest_left, nearest_share = 0, 0, math.huge
-- With room from the start for what follows: a table that grows is copied each time.
local counts, c = {1, now, ends or 0, nil, nil, nil, nil, nil, nil, nil, nil, nil}, 3
local write, w = {KEYS[1], 't', now, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil}, 3
local f, n, policy = 5, 9, 0 -- v[f] is the field ARGV[3 + f]; terms[n] was read last

for _ = 1, terms[6] do
  local limit, taken = terms[n + 3], terms[n + 6]
  local before = (v[f] or 0) + 0
  local slot, counted, previous, used = advance(terms[n + 1], terms[n + 2], terms[n + 4], now,
    before, (v[f + 1] or 0) + 0, (v[f + 2] or 0) + 0)
  policy, counts[c + 1], counts[c + 2], counts[c + 3], c = policy + 1, counted, previous, 0, c + 3
  if used + terms[n + 5] > limit then
    refused = true
  end
  if take then
    used = used + taken
    write[w + 1], write[w + 2], w = ARGV[4 + f], math.min(counted + taken, 9000000000000000), w + 2
    if slot ~= before then
      write[w + 1], write[w + 2], write[w + 3], write[w + 4] = ARGV[3 + f], slot, ARGV[5 + f], previous
      w = w + 4
    end
  end
  local share = (limit - used) / limit
  if share < nearest_share then
    nearest, nearest_left, nearest_share = policy, limit - used, share
  end
  f, n = f + 3, n + 6
end

for k = 1, terms[7] do
  local included, beyond, held = terms[n + 1], terms[n + 2], terms[n + 4]
  local current, earlier = (v[f + 2] or 0) + 0, (v[f + 3] or 0) + 0
  local left = math.max(0, included - (v[f] or 0))
  if beyond >= 0 then
    left = left + beyond - (v[f + 1] or 0)
    included = included + beyond
  end
  if purse then
    left = left + more(k)
  end
  policy, counts[c + 1], counts[c + 2], counts[c + 3], c = policy + 1, left, current, earlier, c + 3
  left = left - current - earlier
  if terms[n + 3] > left then
    refused = true
  end
  if take then
    left = left - held
    if held > 0 then
      write[w + 1], write[w + 2], w = ARGV[5 + f], current + held, w + 2
      if purse then
        claim(k, held)
      end
    end
  end
  local share = left / math.max(included, 1)
  if share < nearest_share then
    nearest, nearest_left, nearest_share = policy, left, share
  end
  f, n = f + 4, n + 4
end

for _ = 1, terms[8] do
  local limit, current = terms[n + 1], (v[f] or 0) + 0
  local flying = current + (v[f + 1] or 0)
  policy, counts[c + 1], counts[c + 2], counts[c + 3], c = policy + 1, flying, 0, 0, c + 3
  if flying >= limit then
    refused = true
  end
  if take then
    flying = flying + 1
    write[w + 1], write[w + 2], w = ARGV[3 + f], current + 1, w + 2
  end
  local share = (limit - flying) / limit
  if share < nearest_share then
    nearest, nearest_left, nearest_share = policy, limit - flying, share
  end
  f, n = f + 2, n + 1
end

local reply = {0, now, nearest, nearest_left, nearest > 0 and counts[3 * nearest + 2] or 0}
if refused and mode ~= 'h' then
  for k = 1, purse and terms[7] or 0 do
    counts[c + 1], c = had(k), c + 1
  end
  reply = {unpack(counts, 1, c)}
  reply[1] = mode == 's' and 5 or 1
end
if not take or reply[1] == 1 then
  return reply
end
for i = 1, terms[9] do
  write[w + 1], write[w + 2], w = ARGV[3 + f], math.min((v[f] or 0) + terms[n + i], 9000000000000000), w + 2
  f = f + 1
end
for _, meter in ipairs(purse and purse.backed or {}) do
  if meter[7] > 0 then
    write[w + 1], write[w + 2], w = ARGV[3 + meter[6]], (v[meter[6]] or 0) + meter[7], w + 2
  end
end
if v[1] ~= ARGV[1] and (mode == 'd' or mode == 's') then
  write[w + 1], write[w + 2], w = 'r', ARGV[1], w + 2
end
if not ends then
  write[w + 1], write[w + 3] = 'b', 'e'
  write[w + 2], write[w + 4] = period(now)
  w = w + 4
end
local lives = now + terms[5]
if terms[9] > 0 then
  lives = math.max(lives, (ends or write[w]) + (ARGV[1] == '1:0' and 900000 or 3456000000))
end
local longer = (v[4] or 0) + 0 < lives
if longer then
  -- A little longer than asked, so that the next call need not set it again.
  lives = lives + math.floor(terms[5] / 8)
  write[w + 1], write[w + 2], w = 'x', lives, w + 2
end
call('HSET', unpack(write, 1, w))
if longer then
  call('PEXPIREAT', KEYS[1], lives)
end
return reply
