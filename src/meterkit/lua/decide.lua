#!lua
-- decide: decides one request of a customer: any number of rates, ceilings and concurrency limits; grants, credits,
-- budgets, gauges, and limits of users or teams where the customer has them. If all policies allow, it counts and holds
-- for each of them. If one refuses, it counts and holds nothing.
--
-- KEYS[1] hash  counters of the customer
-- KEYS[2] hash  state of the customer
-- KEYS[3] hash  totals of closed periods
-- KEYS[4] hash  optional: grants
-- KEYS[5] hash  with grants: their ledger
-- KEYS[6] hash  optional: levels of gauges
-- KEYS[7] zset  optional: idempotency keys, see find_repeat
-- last, with subjects: a zset, their index; then a hash for each, its counters
--
-- ARGV[1] rev of the caller's view of the customer
-- ARGV[2] terms, see below
-- ARGV[3] mode:
--       d  decide
--       f  decide even if the rev is stale
--       c  check only: count nothing, hold nothing
--       v  confirm the rev only
--       h  hold, even beyond a limit, because the caller has admitted the request
--       s  shadow: count and hold also what would be refused, and reply that it would be
-- ARGV[4] with KEYS[4] only: options (JSON)
--       asked, backed    the ceilings, the first ones, that grants and credits extend; see extend_ceilings
--       spend            budgets; see check_budgets
--       levels           gauges that the request would raise; see check_gauges
--       digest, ceilings of an idempotency key, and how many ceilings, the first ones, do not apply to a repeat
-- then names of fields: RATEr a rate; METERm a ceiling; METERn a concurrency limit; METERm a recorded meter; and those
--       that the options refer to: METERm of each other meter that shares a credit; with budgets METERm of each other
--       meter that costs money, METERm or RATEr of each budget; METERm a gauge
-- then, with subjects: their words and terms, see check_subjects
-- last: the caller's clock (ms)
--
-- Terms: whole numbers as doubles
--       in ms: when the view expires; start and end of its period; end of the next period; how long the counters outlive
--       their period; how long they live at least
--       numbers of rates, of ceilings and concurrency limits, of recorded meters, of subjects
--       a rate: kind, window, limit, refill (see advance_rate), quantity needed, quantity to count
--       a ceiling or a concurrency limit: included, overage allowed (-1: none), quantity needed, quantity to hold
--       a gauge: quantity needed, quantity to hold
--       a recorded meter: quantity
--
-- Reply {REFUSED, now, end of the period (ms; 0: none has begun), x, y, z of each policy...}, then, with grants, for each
--                                ceiling that they extend 1 if a grant or credit existed in this period, otherwise 0
--           a window:            counted, counted in the window before, 0
--           a token bucket:      whole units owed, rest owed, 0
--           a ceiling:           left without holds, held in this slot of five minutes, held in the slot before
--           a concurrency limit: limit, in flight since this slot, in flight since the slot before
--           a budget:            left without holds, held, needed, all in micro-units
--           a gauge:             limit, level, held
--           then the policies of subjects
--       {STALE, now, rev, state}
--       {CONFIRMED, now}         in mode v
--       {COUNTED, now, ...}      as REFUSED, but counted and held: in mode s
--       {IN_FLIGHT, now, 0, 0, 0}  the first request with the key has not ended: nothing is done
--       {REPEAT_REFUSED, now, ...}  as REFUSED, for a repeat: only rates and concurrency limits refuse one
--       the error DAMAGED        a field of the counters or of an ended period is invalid: nothing is done
--       otherwise code, now, n, remaining, before, rests, integers of 8 bytes in a string, which costs less than a list
--           n: the policy nearest to its limit, from 1; 0 where there is no policy; before: its y above
--           rests: what is left of each policy behind the customer's rates, but of no gauge. The code:
--           ALLOWED
--           REPEAT               a repeat is allowed: it is counted in rates and in flight; it holds nothing else
--           IN_FLIGHT            as above, but counted and held: in mode s
--include confirm_view
--include unpack_head
--include unpack_meter
--include live_holds
--include write_counters
local rev, terms, mode, caller_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[#ARGV]
local call, read = redis.call, struct.unpack
local until_ms, first_start_ms, first_end_ms, next_end_ms, outlive_ms, keep_ms,
  rate_count, ceiling_count, recorded_count, subject_count, rates_at = read('<dddddddddd', terms)
local subject_keys, subject_words, subject_terms, write_subjects
if subject_count > 0 then -- Included here, so that other requests do not pay for creating the functions.
--include pop_subjects
  subject_keys, subject_words, subject_terms = pop_subjects(KEYS, ARGV, subject_count, 1)
end
local counters_key, state_key, totals_key, grants_key, ledger_key, levels_key, repeats_key = unpack(KEYS)
local name_offset = grants_key and 3 or 2 -- The name of fields[place] is ARGV[name_offset + place].
local fields = call('HMGET', counters_key, 'h', unpack(ARGV, name_offset + 2, #ARGV - 1))
local seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
local now, period_start_ms, period_end_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms,
  first_end_ms, next_end_ms, caller_ms, known_rev, seen_ms, begins_ms, ends_ms, mode == 'f')
if verdict or mode == 'v' then
  return verdict or {CONFIRMED, now}
end
if ends_ms > 0 and (now >= ends_ms or ends_ms ~= period_end_ms) then
--include close_period
  local damaged = close_period(counters_key, totals_key, now, period_start_ms, period_end_ms)
  if damaged then
    return redis.error_reply('DAMAGED the period cannot be closed: no whole numbers in field ' .. damaged)
  end
  fields = call('HMGET', counters_key, 'h', unpack(ARGV, name_offset + 2, #ARGV - 1))
  seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
end
local options, backing = grants_key and cjson.decode(ARGV[4]), nil
if options and options.asked then
--include extend_ceilings
  backing = extend_ceilings(grants_key, fields, options, now, period_start_ms, period_end_ms, ledger_key, rev)
end
local repeat_state, exempt_count = ALLOWED, 0
if repeats_key and mode ~= 'h' then
--include find_repeat
  repeat_state, exempt_count = find_repeat(repeats_key, options, now)
  if repeat_state == IN_FLIGHT and mode ~= 's' then
    return {IN_FLIGHT, now, 0, 0, 0}
  end
end

local is_counting, is_repeat, is_refused = mode ~= 'c', repeat_state == REPEAT, false
local current_slot = math.floor(now / HOLD_SLOT_MS)
local nearest, nearest_left, nearest_share, nearest_before = 0, 0, math.huge, 0
local hset, hset_count = {counters_key, 'h', nil, nil, nil, nil, nil, nil, nil, nil, nil}, 3 -- With room: growing a table copies it.
if rate_count > 0 then
--include check_rates
  is_refused, hset_count, nearest, nearest_left, nearest_share, nearest_before = check_rates(fields, terms, rates_at, ARGV,
    name_offset, rate_count, now, is_counting, hset, hset_count)
end
local refusal, refusal_count, report_policy, rests = nil, 3 + 3 * rate_count, nil, ''
if ceiling_count > 0 or options or subject_keys then -- Rates pay for neither: report_refusal reads them again.
  refusal = {nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil}
  function report_policy(left, total, x, y, z)
    refusal[refusal_count + 1], refusal[refusal_count + 2], refusal[refusal_count + 3] = x, y, z
    refusal_count = refusal_count + 3
    rests = rests .. struct.pack('<i8', left)
    local share = left / total
    if share < nearest_share then
      nearest, nearest_left, nearest_share, nearest_before = refusal_count / 3 - 1, left, share, y
    end
  end
end
local ceilings_at = rates_at + RATE_BYTES * rate_count
local rest_at = ceilings_at
if ceiling_count > 0 then
--include check_ceilings
  is_refused, hset_count, rest_at = check_ceilings(fields, terms, ceilings_at, ARGV, name_offset, rate_count + 1,
    ceiling_count, exempt_count, backing, current_slot, is_counting, is_refused, hset, hset_count, report_policy)
end
if options and options.spend then
--include check_budgets
  is_refused = check_budgets(options.spend, backing, fields, terms, ceilings_at, now, is_repeat, is_counting,
    report_policy) or is_refused
end
if options and options.levels then
--include check_gauges
  is_refused, refusal_count, hset_count, rest_at = check_gauges(levels_key, options.levels, fields, now, is_counting,
    is_repeat, is_refused, terms, rest_at, refusal, refusal_count, hset, hset_count)
end
begins_ms = ends_ms > 0 and begins_ms or period_start_ms
if subject_keys then
--include check_subjects
  is_refused, write_subjects = check_subjects(subject_keys, subject_words, subject_terms, begins_ms, now, is_refused,
    is_repeat, is_counting, report_policy)
end

local reply = struct.pack('<i8i8i8i8i8', repeat_state, now, nearest, nearest_left, nearest_before) .. rests
if is_refused and mode ~= 'h' and (repeat_state == ALLOWED or mode ~= 's') then
--include report_refusal
  local code = mode == 's' and COUNTED or is_repeat and REPEAT_REFUSED or REFUSED
  refusal = report_refusal(refusal or {}, refusal_count, code, now, ends_ms, fields, terms, rates_at, rate_count, backing)
  reply = refusal
end
if not is_counting or reply == refusal and mode ~= 's' then
  return reply
end
if recorded_count > 0 and not is_repeat then
--include count_recorded
  hset_count = count_recorded(fields, terms, rest_at, ARGV, name_offset, rate_count + ceiling_count + 2,
    recorded_count, hset, hset_count)
end
if backing and not is_repeat then
--include hold_backed
  hset_count = hold_backed(fields, options, current_slot, ARGV, name_offset, hset, hset_count)
end
local new_rev = (mode == 'd' or mode == 's') and rev or known_rev
local lives_ms = math.max(now + keep_ms, recorded_count > 0 and period_end_ms + outlive_ms or 0)
write_counters(hset, hset_count, now, begins_ms, period_end_ms, new_rev, expires_ms, lives_ms, math.floor(keep_ms / 8))
if write_subjects then
  write_subjects()
end
if repeats_key and repeat_state == ALLOWED then
--include remember_until
  remember_until(repeats_key, 'f' .. options.digest, (current_slot + 2) * HOLD_SLOT_MS, now)
end
return reply
