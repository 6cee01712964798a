#!lua
-- settle: what a request came to: gives back its holds, records what is billed and classifies it, counts
-- into rates what they have not seen yet. A numbered settlement is applied exactly once, in order.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods
-- KEYS[4] zset  customers with pending usage: `dirty` if linked, else `unlinked`
-- KEYS[5] string  the producer: the last number applied, or c<number> once it is fenced
-- KEYS[6] hash  optional: grants    KEYS[7] hash  with grants: their ledger    KEYS[8] stream  with grants: notices
-- the last of KEYS  optional: string, remembers for 35 days what an event id of the app has counted (see compare_event);
--       or zset: idempotency keys (see find_repeat)
--       where there is an audit log, behind that: stream of the audit log
--       with subjects behind these: zset  their index, then a hash each, counters of its own
-- ARGV  1 rev   2 terms   3 the customer, as a member of KEYS[4]
--       4 empty, or (JSON) an object of what grants pay (see pay_with_grants), and of when the usage occurred: at (ms), own: the
--       first instant of the period that this was, dead: 1 where late usage is not recorded; and of an idempotency
--       key: digest, billed: 1 where it is remembered from now on; event: what an event id is given with, see compare_event;
--       tells: 1 where the reply says what is paid for
--       then the fields: METERm a meter; METERn a concurrency limit; RATEr a rate; where there is an audit
--       log: what else is known of the usage
--       with subjects: their words and terms, see settle_subjects
--       then the slot of the holds and the number, as doubles; the caller's clock (ms)
-- terms whole numbers as doubles: until when the rev is valid, start and end of the period, end of the
--       next one, how long the counters must outlive the period, how long until pending usage is sealed (-1: the
--       customer is not linked; all ms); how many meters and concurrency limits, rates, thresholds, subjects,
--       priced meters (the one behind these counts what is spent); then
--       recorded, held, included (-1: unlimited), cap (-1: none), report included (0/1), report overage (0/1), whose event that is
--       (0: the meter's, 1: that of a meter behind it, 2: it is sent what one before it reports, 3: its units are the
--       overage of the last one before it that is not 3) a meter; kind, window, refill,
--       quantity (below 0: of what was counted too much), when it was counted (ms; 0: now) a rate; then a threshold of
--       what is included, see crossed_thresholds; these want the keys of grants, too; then the prices, see count_spend
-- Reply {0, now, a word for each meter, 'paid METERm CREDITED OVERAGE', where `tells` is 1, 'late PERIOD' where it was,
--       'notice' where there is one, 'subjects' where one found no room} ok
--       {1, now} duplicate    {2, last} gap    {3, last} fenced    {4, now, rev, state} stale   {5, now} clock   {6, field} applied except for a meter whose total
--       would pass 9 * 10^15    {7, field} numbered and not applied: a field is not what it must be, here or of a
--       period that is over; the next settlements need not wait for its repair    {8, now, what is kept of the event id}
--       numbered and not applied: the id has counted another quantity    {9, now, the same} not applied: it has counted
--       some of these meters
--include confirm_view
--include unpack_head
--include unpack_meter
--include release_hold
--include take_number
--include expire_at
--include unpack_extras
--include classify_units
--include report_derived
local terms, call, read, pack, subjects, own_words, own_terms = ARGV[2], redis.call, struct.unpack, cmsgpack.pack
local until_ms, starts, ends, next_end_ms, outlive_ms, seal_delay_ms, meters, rates, thresholds, others, priced_meters, at =
  read('<ddddddddddd', terms)
if others > 0 then -- Others do not pay for making these functions.
--include pop_subjects
  subjects, own_words, own_terms = pop_subjects(KEYS, ARGV, others, 2)
end
--audited --include audit_usage
--audited local audit_key, told, n = table.remove(KEYS), table.remove(ARGV, #ARGV - 2), 0
--audited local noted = {nil, nil, nil, nil, nil, nil, nil} -- With place for one meter.
local counters_key, state_key, totals_key, waiting_key, producer_key, grants_key, ledger_key, notices_key = unpack(KEYS)
local rev, customer, further, caller_ms, names, hold_slot, number = ARGV[1], ARGV[3], ARGV[4], ARGV[#ARGV], 3, read('<dd', ARGV[#ARGV - 1])
local fields = call('HMGET', counters_key, 'h', unpack(ARGV, names + 2, #ARGV - 2))
local seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
local now, starts_ms, finishes_ms, verdict =
  confirm_view(state_key, rev, until_ms, starts, ends, next_end_ms, caller_ms, known_rev, seen_ms, ends_ms, false)
local once_key, details = KEYS[notices_key and 9 or 6], further ~= '' and cjson.decode(further)
local keep_event, partly, counted
if details and details.event then -- As above.
--include compare_event
  keep_event, partly, counted = compare_event(once_key, details.event, now)
end
verdict = verdict and {verdict[1] + 2, unpack(verdict, 2)} or partly or take_number(producer_key, number, now) or counted
if verdict then
  return verdict
end
if ends_ms == 0 then
  begins_ms, ends_ms = starts_ms, finishes_ms
elseif ends_ms ~= finishes_ms then -- As above.
--include close_period
  local damaged = close_period(counters_key, totals_key, now, starts_ms, finishes_ms)
  if damaged then
    return {7, damaged}
  end
  fields = call('HMGET', counters_key, 'h', unpack(ARGV, names + 2, #ARGV - 2))
  seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
end
local words, late, is_dead, pay, keep_grants, is_repeat, keep_mark, spend, windows, tells, spent, refused = {}
if details then -- As above.
--include open_details
  late, is_dead, pay, keep_grants, is_repeat, keep_mark, tells = open_details(details, KEYS, rev, now,
    starts_ms, finishes_ms, begins_ms, hold_slot)
end
if priced_meters > 0 then -- As above.
--include count_spend
  spend, windows = count_spend(terms, at + 56 * meters + 40 * rates + 32 * thresholds)
end

local has_recorded, begins_to_wait, lasts_ms, priced, late_units, sent_on = false, false, QUARTER_HOUR_MS, 0, {}
local write, w, current_slot = {counters_key, 'h', nil, nil, nil, nil, nil}, 3, math.floor(now / HOLD_SLOT_MS)
for place = 2, meters + 1 do
  local quantity, asked, allowance, cap, reports_included, reports_overage, event = read('<ddddddd', terms, at + 56 * (place - 2))
  local name = ARGV[names + place]
  local included, overage, pending, slot, held, held_before, besides = unpack_meter(fields[place], name)
  held, held_before = release_hold(hold_slot, asked, current_slot, slot, held, held_before)
  quantity = event == PRICED and math.min(quantity, priced) or place == priced_meters + 2 and spent or quantity
  if quantity > 0 and not is_repeat then
    has_recorded = true
    local granted, credited, occurred_before, stamped_ms, over_cap = unpack_extras(besides)
    if included + overage + granted + credited + over_cap + quantity > MOST then
      refused, quantity = refused or name, 0
    elseif late then
      late_units[string.sub(name, 1, 4)] = quantity
      quantity = is_dead and 0 or quantity
      occurred_before = occurred_before + quantity
    end
    local within, by_grants, by_credits, beyond, over = classify_units(quantity, included, overage, allowance, cap, pay, place - 1)
    spent = spend and place < priced_meters + 2 and spend(place - 1, overage, beyond, quantity - within - over) or spent
    local reported = within * reports_included + beyond * reports_overage
    if event == SENT_ON then
      sent_on, reported = {within * reports_included, beyond * reports_overage, over}, 0
    elseif event == TAKES_OVER then
      reported = report_derived(sent_on, quantity, over)
    end
    priced = event ~= PRICED and beyond or priced
    begins_to_wait = begins_to_wait or reported > 0 and pending == 0
    words[#words + 1] = tells and string.format('paid %s %.0f %.0f', name, by_credits, beyond)
    included, overage, pending = included + within, overage + beyond, pending + reported
    --audited noted[n + 1], noted[n + 2], noted[n + 3], noted[n + 4] = name, within, by_grants, by_credits
    --audited noted[n + 5], noted[n + 6], noted[n + 7], n = beyond, over, reported, n + 7
    besides = (details or over > 0)
      and pack(granted + by_grants, credited + by_credits, occurred_before, stamped_ms, over_cap + over) or besides
  end
  write[w + 1], write[w + 2], w = name, pack(FORM, included, overage, pending, current_slot, held, held_before, besides), w + 2
end
if rates > 0 then -- As above.
--include correct_rates
  w, lasts_ms = correct_rates(terms, at + 56 * meters, rates, windows, spent, fields, ARGV, names, meters + 2, write, w, now)
end
local keep = keep_event or keep_mark
if keep then
  keep()
end
if late then
  words[#words + 1] = 'late ' .. late
--include count_late_units
  count_late_units(totals_key, late, late_units)
end
if notices_key then -- As above.
--include crossed_thresholds
--include queue_notices
  local notices = crossed_thresholds(terms, at + 56 * meters + 40 * rates, thresholds, fields, write)
  words[#words + 1] = queue_notices(notices_key, customer, pay and keep_grants(notices) or notices, now, begins_ms, ends_ms)
end

--audited audit_usage(audit_key, producer_key, number, customer, now, begins_ms, late, told, noted)
local new_expiry_ms = math.max(now + lasts_ms, has_recorded and ends_ms + outlive_ms or 0)
if begins_to_wait then -- As above.
--include schedule_seal
  new_expiry_ms = schedule_seal(waiting_key, customer, seal_delay_ms, ends_ms, new_expiry_ms, now)
end
write[3] = pack(FORM, now, begins_ms, ends_ms, math.max(expires_ms, new_expiry_ms), rev)
call('HSET', unpack(write, 1, w))
if new_expiry_ms > expires_ms then
  expire_at(counters_key, new_expiry_ms)
end
if subjects then -- As above.
--include settle_subjects
  words[#words + 1] = settle_subjects(subjects, own_words, own_terms, begins_ms, ends_ms, hold_slot, not (is_repeat or late and is_dead), now)
end
return refused and {6, refused} or {0, now, unpack(words)}
