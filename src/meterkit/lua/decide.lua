#!lua
-- decide: whether a customer may, over any number of rates, ceilings and concurrency limits at once.
-- If all allow, everything is counted and held; if any refuses, nothing is.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods
-- KEYS[4] hash  optional: grants    KEYS[5] hash  with grants: their ledger    KEYS[6] hash  optional: levels of gauges
-- KEYS[7] zset  optional: idempotency keys (see find_repeat)
--       with subjects behind these: zset  their index, then a hash each, counters of its own
-- ARGV  1 rev   2 terms   3 mode: d decide, f decide whatever the rev, c check only, v confirm the rev only,
--       h hold what is held already, whatever is left, s count and hold also what would be refused, and say so
--       with KEYS[4] further terms (JSON): the grants and credits behind meters; where it says `asked`
--       (see extend_ceilings); the budgets, where it says `spend` (see check_budgets); the gauges that are to grow, where
--       it says `levels` (see check_gauges); whether it is a
--       repeat, where it has the `digest` of an idempotency key, and of how many `ceilings` a repeat is not asked
--       then the fields: RATEr a rate; METERm a ceiling; METERn a concurrency limit; METERm a recorded meter;
--       with grants METERm for each other meter that shares a credit; with budgets METERm for each other meter
--       whose units cost something, METERm or RATEr for each budget; METERm a gauge
--       with subjects: their words and terms, see check_subjects
--       last: the caller's clock (ms)
-- terms whole numbers as doubles: until when the rev is valid, start and end of the period, end of the
--       next one, how long the counters must outlive the period, and live at least (all ms); how many rates,
--       ceilings and concurrency limits, meters recorded here, subjects; then kind, window, limit, refill, needed,
--       taken a rate; included, beyond (-1: deny), needed, held a ceiling or a concurrency limit; needed, held a
--       gauge; quantity a recorded meter
-- Reply {0, now, n, remaining, before}   allowed; n: the policy nearest to exhaustion, from 1; 0 for none;
--                                before: its previous (windows) or rest (bucket), as below
--       {1, now, ends, x, y, z, ...}   refused; the end of the period (ms), 0 where none has begun; then three
--                                numbers a policy: counted, previous, 0 (windows); owed whole, rest, 0 (bucket);
--                                left without holds, held in this slot, in the last one (ceiling);
--                                limit, in flight since this slot, since the last one (concurrency);
--                                left without holds, held, asked (a budget, in micro-units);
--                                limit, level, held (a gauge);
--                                those of subjects behind the customer's;
--                                last, with grants, a ceiling each: 1 where
--                                grants or credits stood behind it in this period, else 0
--       {2, now, rev, state}     stale     {3, now} clock     {4, now} the rev is confirmed
--       {5, now, ends, ...}      as 1, but counted and held
--       {6, now, n, remaining, before}   as 0, of a repeat: counted in rates, and in flight; nothing else is held
--       {7, now, n, remaining, before}   its first is in flight: nothing is done; in mode s as 0
--       {8, now, ends, ...}      as 1, of a repeat, which is refused by rates and concurrency only
--       the error DAMAGED        a field is not what it must be, here or of a period that is over: nothing is done
--include confirm_view
--include unpack_head
--include unpack_rate
--include unpack_meter
--include live_holds
--include advance_rate
--include write_counters
local rev, terms, mode, caller_ms, subjects, own_words, own_terms = ARGV[1], ARGV[2], ARGV[3], ARGV[#ARGV]
local call, read, pack = redis.call, struct.unpack, cmsgpack.pack
local until_ms, first_start_ms, first_end_ms, next_end_ms, outlive_ms, keep_ms, rates, ceilings, records, others, at =
  read('<dddddddddd', terms)
if others > 0 then -- Others do not pay for making these functions.
--include pop_subjects
  subjects, own_words, own_terms = pop_subjects(KEYS, ARGV, others, 1)
end
local counters_key, state_key, totals_key, grants_key, ledger_key, levels_key, marks_key = unpack(KEYS)
local names = grants_key and 3 or 2 -- Of fields[2] the name is ARGV[names + 2].
local fields = call('HMGET', counters_key, 'h', unpack(ARGV, names + 2, #ARGV - 1))
local seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
local now, starts_ms, finishes_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms, first_end_ms,
  next_end_ms, caller_ms, known_rev, seen_ms, ends_ms, mode == 'f')
if verdict or mode == 'v' then
  return verdict or {4, now}
end
if ends_ms > 0 and (now >= ends_ms or ends_ms ~= finishes_ms) then -- As above.
--include close_period
  local damaged = close_period(counters_key, totals_key, now, starts_ms, finishes_ms)
  if damaged then
    return redis.error_reply('DAMAGED the period cannot be closed: no whole numbers in field ' .. damaged)
  end
  fields = call('HMGET', counters_key, 'h', unpack(ARGV, names + 2, #ARGV - 1))
  seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
end
local further, backs, more, claim, report_backed, covered, hold = grants_key and cjson.decode(ARGV[4]), 0
if further and further.asked then -- As above.
--include extend_ceilings
--include hold_backed
  backs, hold = #further.asked, hold_backed -- As many of the ceilings, the first.
  more, claim, report_backed, covered = extend_ceilings(grants_key, fields, further, now, starts_ms, finishes_ms, ledger_key, rev)
end
local twin, unasked = 0, 0
if marks_key and mode ~= 'h' then -- As above.
--include find_repeat
  twin, unasked = find_repeat(marks_key, further, now)
  if twin == IN_FLIGHT and mode ~= 's' then
    return {IN_FLIGHT, now, 0, 0, 0}
  end
end

local takes, is_refused, current_slot, keep = mode ~= 'c', false, math.floor(now / HOLD_SLOT_MS), nil
local nearest, nearest_left, nearest_share, nearest_before = 0, 0, math.huge, 0
local told, t = {1, now, ends_ms, nil, nil, nil, nil, nil, nil, nil, nil, nil}, 3 -- With place: growing copies a table.
local write, w = {counters_key, 'h', nil, nil, nil, nil, nil, nil, nil, nil, nil}, 3
local function report_policy(left, whole, x, y, z)
  told[t + 1], told[t + 2], told[t + 3], t = x, y, z, t + 3
  local share = left / whole
  if share < nearest_share then
    nearest, nearest_left, nearest_share, nearest_before = t / 3 - 1, left, share, y
  end
end
for place = 2, rates + 1 do
  local kind, window, limit, refill, needed, taken = read('<dddddd', terms, at + 48 * (place - 2))
  local name, used = ARGV[names + place], nil
  local slot, counted, previous = unpack_rate(fields[place], name)
  slot, counted, previous, used = advance_rate(kind, window, refill, now, slot, counted, previous)
  is_refused = is_refused or used + needed > limit
  if takes then
    used = used + taken
    write[w + 1], write[w + 2], w = name, pack(FORM, slot, math.min(counted + taken, MOST), previous), w + 2
  end
  report_policy(limit - used, limit, counted, previous, 0)
end
for place = rates + 2, rates + ceilings + 1 do
  local nth, name = place - rates - 1, ARGV[names + place]
  local included, beyond, needed, asked = read('<dddd', terms, at + 48 * rates + 32 * (nth - 1))
  local counted, overage, pending, slot, held, held_before, besides = unpack_meter(fields[place], name)
  held, held_before = live_holds(current_slot, slot, held, held_before)
  local available, whole = math.max(0, included - counted) + math.max(0, beyond - overage), included + math.max(0, beyond)
  available = nth <= backs and available + more(nth) or available
  local left = available - held - held_before
  is_refused = is_refused or needed > left and nth > unasked
  if takes and asked > 0 and nth > unasked then
    left = left - asked
    write[w + 1], write[w + 2], w = name,
      pack(FORM, counted, overage, pending, current_slot, held + asked, held_before, besides), w + 2
    if backs >= nth then
      claim(nth, asked)
    end
  end
  report_policy(left, beyond == UNCAPPED and 1 or math.max(whole, 1), available, held, held_before)
end
at = at + 48 * rates + 32 * ceilings
if further and further.spend then -- As above.
--include check_budgets
  is_refused = check_budgets(further.spend, covered, fields, terms, at - 32 * ceilings, now, twin == REPEAT, takes, report_policy) or is_refused
end
if further and further.levels then -- As above.
--include check_gauges
  is_refused, t, w, at = check_gauges(levels_key, further.levels, fields, now, takes, twin == REPEAT, is_refused,
    terms, at, told, t, write, w)
end
begins_ms, ends_ms = ends_ms > 0 and begins_ms or starts_ms, finishes_ms
if subjects then -- As above.
--include check_subjects
  is_refused, keep = check_subjects(subjects, own_words, own_terms, begins_ms, now, is_refused, twin == REPEAT, takes, report_policy)
end

local reply = {twin, now, nearest, nearest_left, nearest_before}
if is_refused and mode ~= 'h' and (twin == 0 or mode ~= 's') then
  told[1], reply = mode == 's' and 5 or twin == REPEAT and 8 or 1, report_backed and report_backed(told, t) or told
end
if not takes or reply == told and mode ~= 's' then
  return reply
end
if records > 0 and twin ~= REPEAT then -- As above.
--include count_recorded
  w = count_recorded(fields, terms, at, ARGV, names, rates + ceilings + 2, records, write, w)
end
w = hold and twin ~= REPEAT and hold(fields, further, current_slot, ARGV, names, write, w) or w
write_counters(write, w, now, begins_ms, ends_ms, (mode == 'd' or mode == 's') and rev or known_rev, expires_ms,
  math.max(now + keep_ms, records > 0 and ends_ms + outlive_ms or 0), math.floor(keep_ms / 8))
if keep then
  keep()
end
if marks_key and twin == 0 then -- As above.
--include remember_until
  remember_until(marks_key, 'f' .. further.digest, (current_slot + 2) * HOLD_SLOT_MS, now)
end
return reply
