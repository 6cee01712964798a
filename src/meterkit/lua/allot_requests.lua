#!lua
-- allot_requests: decides an allotment: many requests of a customer for one route at once. It counts and holds for each what
-- `decide` counts and holds for one. The caller's process admits them without asking again, and returns unused ones.
--
-- KEYS[1] hash  counters of the customer
-- KEYS[2] hash  state of the customer
-- KEYS[3] hash  totals of closed periods
-- KEYS[4] hash  optional: grants
--
-- ARGV[1] rev of the caller's view of the customer
-- ARGV[2] terms as those of decide; no rate is a bucket, no meter is recorded, and each policy counts what it needs
-- ARGV[3] doubles: requests at most, and at least; share: see requests_with_room; term at most, and at least (ms)
-- ARGV[4] with KEYS[4] only: options (JSON) as those of decide: grants and credits, budgets
-- then names of fields: RATEr a rate; METERm a ceiling; METERn a concurrency limit; and those that the options refer to
-- last: the caller's clock (ms)
--
-- Reply {ALLOWED, now, n, remaining, before, requests, quantity, lasts, rests...}
--                                requests: their number; lasts: term (ms), in which no window, period, state or grant ends;
--                                n, remaining, before: as decide replies to the last request, before of rates only;
--                                quantity: of each request in policy n; 0 of a budget; rests: as decide replies to the last
--       {REFUSED, now}           no room for so many requests, or for so long: nothing is done
--       {STALE, now, rev, state}
--       the error DAMAGED        a field of the counters or of an ended period is invalid: nothing is done
--include confirm_view
--include unpack_head
--include unpack_rate
--include unpack_meter
--include live_holds
--include advance_rate
--include requests_with_room
--include pack_taken
local counters_key, state_key, totals_key, grants_key = unpack(KEYS)
local rev, terms, wanted, caller_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[#ARGV]
local call, read, pack = redis.call, struct.unpack, cmsgpack.pack
local options = grants_key and cjson.decode(ARGV[4])
local name_offset = grants_key and 3 or 2 -- The name of fields[place] is ARGV[name_offset + place].
local until_ms, first_start_ms, first_end_ms, next_end_ms, _, keep_ms, rate_count, ceiling_count, _, _, at =
  read('<dddddddddd', terms)
local requests, least, share, lasts_ms, lasts_least_ms = read('<ddddd', wanted)

local fields = call('HMGET', counters_key, 'h', unpack(ARGV, name_offset + 2, #ARGV - 1))
local seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
local now, period_start_ms, period_end_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms, first_end_ms,
  next_end_ms, caller_ms, known_rev, seen_ms, begins_ms, ends_ms, false)
if verdict then
  return verdict
end
if ends_ms > 0 and ends_ms ~= period_end_ms then -- Others do not pay for making these functions.
--include close_period
  local damaged = close_period(counters_key, totals_key, now, period_start_ms, period_end_ms)
  if damaged then
    return redis.error_reply('DAMAGED the period cannot be closed: no whole numbers in field ' .. damaged)
  end
  fields = call('HMGET', counters_key, 'h', unpack(ARGV, name_offset + 2, #ARGV - 1))
  seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
end

local current_slot = math.floor(now / HOLD_SLOT_MS)
local policies = {} -- Each: quantity of a request, left, total, before, numbers of its field, index of the counting one, place.
lasts_ms = math.min(lasts_ms, until_ms - now, period_end_ms - now)
for place = 2, rate_count + 1 do
  local kind, window, limit, refill, needed, quantity, used
  kind, window, limit, refill, needed, quantity, at = read('<dddddd', terms, at)
  local slot, counted, previous = unpack_rate(fields[place], ARGV[name_offset + place])
  slot, counted, previous, used = advance_rate(kind, window, refill, now, slot, counted, previous)
  requests = requests_with_room(requests, share, limit - used, needed)
  lasts_ms = math.min(lasts_ms, (slot + 1) * window - now)
  policies[place - 1] = {quantity, limit - used, limit, previous, {slot, counted, previous}, 2, place}
end
local ceilings_at = at
for place = rate_count + 2, rate_count + ceiling_count + 1 do
  local included, overage_limit, needed, quantity
  included, overage_limit, needed, quantity, at = read('<dddd', terms, at)
  local counted, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], ARGV[name_offset + place])
  held, held_before = live_holds(current_slot, slot, held, held_before)
  local left = math.max(0, included - counted) + math.max(0, overage_limit - overage) - held - held_before
  if not options then
    requests = requests_with_room(requests, share, left, needed)
  end
  local total = overage_limit == UNCAPPED and 1 or math.max(included + math.max(0, overage_limit), 1)
  local numbers = {counted, overage, pending, current_slot, held, held_before, extras}
  policies[place - 1] = {quantity, left, total, 0, numbers, 5, place}
end
if options then -- As above.
--include count_allowed
  local changes_at
  requests, changes_at = count_allowed(grants_key, options, fields, terms, ceilings_at, policies, rate_count, ceiling_count,
    requests, least, share, now, period_start_ms, period_end_ms)
  lasts_ms = math.min(lasts_ms, changes_at - now)
end
if requests < least or lasts_ms < lasts_least_ms then
  return {REFUSED, now}
end

local hset = {counters_key, 'h', false}
local nearest, nearest_left, nearest_share, nearest_before, nearest_quantity = 0, 0, math.huge, 0, 0
local reply = {ALLOWED, now, 0, 0, 0, requests, 0, lasts_ms}
for n, policy in ipairs(policies) do
  local quantity, left, total, before, numbers, _, place = unpack(policy)
  left = left - requests * quantity
  if n > rate_count and left < math.huge then -- Not of other holds.
    reply[#reply + 1] = left
  end
  if numbers then
    hset[#hset + 1] = ARGV[name_offset + place]
    hset[#hset + 1] = pack_taken(policy, requests)
  end
  if left / total < nearest_share then
    nearest, nearest_left, nearest_share, nearest_before, nearest_quantity = n, left, left / total, before, quantity
  end
end
begins_ms = ends_ms > 0 and begins_ms or period_start_ms
local is_longer = expires_ms < now + keep_ms -- Longer by so much that the next call need not set it again.
expires_ms = is_longer and now + keep_ms + math.floor(keep_ms / 8) or expires_ms
hset[3] = pack(FORM, now, begins_ms, period_end_ms, expires_ms, rev)
call('HSET', unpack(hset))
if is_longer then
  call('PEXPIREAT', counters_key, expires_ms)
end
reply[3], reply[4], reply[5], reply[7] = nearest, nearest_left, nearest_before, nearest_quantity
return reply
