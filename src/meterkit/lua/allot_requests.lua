#!lua
-- allot_requests: decides for many requests of a customer at once, all of one line: counts and holds for each what `decide`
-- counts and holds for one. Their process admits them without asking again, and gives back what it does not use.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods
-- KEYS[4] hash  optional: grants
-- ARGV  1 rev   2 terms   3 doubles: for how many requests at most, and at least; the share of the others: how many
--       times what these need is to be left; for how long at most, and at least (ms)
--       with KEYS[4] further terms (JSON), as those of decide: grants and credits, budgets
--       then the fields: RATEr a rate; METERm a ceiling; METERn a concurrency limit; with KEYS[4] those that decide reads
--       last: the caller's clock (ms)
-- terms as those of decide; no rate is a bucket, no meter is recorded, and each policy takes what it needs
-- Reply {0, now, n, remaining, before, requests, taken, lasts}   so many requests are admitted for so long (ms): no
--                                window, period, state or grant ends within that; n, remaining, before: as decide tells
--                                them behind the last of these, before of rates only; taken: what each takes of that
--                                policy, of a budget 0
--       {1, now}                 nothing is done: there is no room for as many, or not for as long
--       {2, now, rev, state}     stale     {3, now} clock
--       the error DAMAGED        a field is not what it must be, here or of a period that is over: nothing is done
--include confirm_view
--include unpack_head
--include unpack_rate
--include unpack_meter
--include live_holds
--include advance_rate
--include room_for
--include pack_taken
local counters_key, state_key, totals_key, grants_key = unpack(KEYS)
local rev, terms, wanted, caller_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[#ARGV]
local call, read, pack = redis.call, struct.unpack, cmsgpack.pack
local further, names = grants_key and cjson.decode(ARGV[4]), grants_key and 3 or 2 -- Of fields[2] the name is ARGV[names + 2].
local until_ms, first_start_ms, first_end_ms, next_end_ms, _, keep_ms, rates, ceilings, _, _, at =
  read('<dddddddddd', terms)
local requests, least, share, lasts_ms, lasts_least_ms = read('<ddddd', wanted)

local fields = call('HMGET', counters_key, 'h', unpack(ARGV, names + 2, #ARGV - 1))
local seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
local now, starts_ms, finishes_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms, first_end_ms,
  next_end_ms, caller_ms, known_rev, seen_ms, ends_ms, false)
if verdict then
  return verdict
end
if ends_ms > 0 and ends_ms ~= finishes_ms then -- Others do not pay for making these functions.
--include close_period
  local damaged = close_period(counters_key, totals_key, now, starts_ms, finishes_ms)
  if damaged then
    return redis.error_reply('DAMAGED the period cannot be closed: no whole numbers in field ' .. damaged)
  end
  fields = call('HMGET', counters_key, 'h', unpack(ARGV, names + 2, #ARGV - 1))
  seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
end

local current_slot, policies = math.floor(now / HOLD_SLOT_MS), {}
lasts_ms = math.min(lasts_ms, until_ms - now, finishes_ms - now)
for place = 2, rates + 1 do
  local kind, window, limit, refill, needed, taken, used
  kind, window, limit, refill, needed, taken, at = read('<dddddd', terms, at)
  local slot, counted, previous = unpack_rate(fields[place], ARGV[names + place])
  slot, counted, previous, used = advance_rate(kind, window, refill, now, slot, counted, previous)
  requests = room_for(requests, share, limit - used, needed)
  lasts_ms = math.min(lasts_ms, (slot + 1) * window - now)
  policies[place - 1] = {taken, limit - used, limit, previous, {slot, counted, previous}, 2, place}
end
local ceilings_at = at
for place = rates + 2, rates + ceilings + 1 do
  local included, beyond, needed, taken
  included, beyond, needed, taken, at = read('<dddd', terms, at)
  local counted, overage, pending, slot, held, held_before, besides = unpack_meter(fields[place], ARGV[names + place])
  held, held_before = live_holds(current_slot, slot, held, held_before)
  local left = math.max(0, included - counted) + math.max(0, beyond - overage) - held - held_before
  requests = further and requests or room_for(requests, share, left, needed)
  policies[place - 1] = {taken, left, beyond == UNCAPPED and 1 or math.max(included + math.max(0, beyond), 1), 0,
    {counted, overage, pending, current_slot, held, held_before, besides}, 5, place}
end
if further then -- As above.
--include count_allowed
  local changes_at
  requests, changes_at = count_allowed(grants_key, further, fields, terms, ceilings_at, policies, rates, ceilings,
    requests, least, share, now, starts_ms, finishes_ms)
  lasts_ms = math.min(lasts_ms, changes_at - now)
end
if requests < least or lasts_ms < lasts_least_ms then
  return {1, now}
end

local write, nearest, nearest_left, nearest_share, nearest_before, nearest_taken =
  {counters_key, 'h', false}, 0, 0, math.huge, 0, 0
for policy, told in ipairs(policies) do
  local taken, left, whole, before, numbers, _, place = unpack(told)
  left = left - requests * taken
  if numbers then
    write[#write + 1], write[#write + 2] = ARGV[names + place], pack_taken(told, requests)
  end
  if left / whole < nearest_share then
    nearest, nearest_left, nearest_share, nearest_before, nearest_taken = policy, left, left / whole, before, taken
  end
end
begins_ms = ends_ms > 0 and begins_ms or starts_ms
local is_longer = expires_ms < now + keep_ms -- Longer by so much that the next call need not set it again.
expires_ms = is_longer and now + keep_ms + math.floor(keep_ms / 8) or expires_ms
write[3] = pack(FORM, now, begins_ms, finishes_ms, expires_ms, rev)
call('HSET', unpack(write))
if is_longer then
  call('PEXPIREAT', counters_key, expires_ms)
end
return {0, now, nearest, nearest_left, nearest_before, requests, nearest_taken, lasts_ms}
