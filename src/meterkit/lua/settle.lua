#!lua
-- settle: settles a request: releases its holds, classifies and records its usage, and counts into rates what they have
-- not counted yet. A numbered settlement is applied exactly once, in the order of its producer.
--
-- KEYS[1] hash  counters of the customer
-- KEYS[2] hash  state of the customer
-- KEYS[3] hash  totals of closed periods
-- KEYS[4] zset  customers with pending usage: `dirty` if linked, else `unlinked`
-- KEYS[5] string  the producer: the last number applied, or c<number> once it is fenced
-- KEYS[6] hash  optional: grants
-- KEYS[7] hash  with grants: their ledger
-- KEYS[8] stream  with grants: notices
-- then, optional: a string that remembers for 35 days what an event id of the app has counted, see compare_event; or a
--       zset of idempotency keys, see find_repeat
-- then, with an audit log: its stream
-- last, with subjects: a zset, their index; then a hash for each, its counters
--
-- ARGV[1] rev of the caller's view of the customer
-- ARGV[2] terms, see below
-- ARGV[3] the customer, as a member of KEYS[4]
-- ARGV[4] empty, or options (JSON)
--       mark, recurring, paying, low, money   what grants pay; see pay_with_grants
--       at, own, dead    of usage that occurred earlier: when (ms), the first instant of that period, and 1 where
--                        backdated usage is not recorded
--       digest, billed   of an idempotency key, and 1 where it is remembered as billed from now on
--       event            what an event id counts; see compare_event
--       tells            1 where the reply says how usage was paid
--       prices           where invoice lines bill the usage: labels of the meters' prices; see follow_prices
-- then names of fields: METERm a meter; METERn a concurrency limit; RATEr a rate
-- then, with an audit log: what else it says of the usage
-- then, with subjects: their words and terms, see settle_subjects
-- then two doubles: the slot in which the request holds, and the number of the settlement; see take_number
-- last: the caller's clock (ms)
--
-- Terms: whole numbers as doubles
--       in ms: when the view expires; start and end of its period; end of the next period; how long the counters outlive
--       their period; how long until pending usage is sealed (-1: the customer is not linked)
--       numbers of meters and concurrency limits, of rates, of thresholds, of subjects, and of priced meters: these are the
--       first ones, and the meter after them counts what is spent
--       a meter or concurrency limit: units recorded, units held, included (-1: unlimited), cap of the overage (-1: none),
--       whether included units are reported (0/1), whether overage is (0/1), and under which event:
--           0                    its own
--           REPORTED_BY_DERIVED  the event of a derived meter after it
--           REPORTS_FOR_SOURCE   its own, for the meter before it
--           PRICE_ROW            none: its units are overage of the last meter before it that is no price row
--       a rate: kind, window, refill (see advance_rate), quantity (below 0: that much too much was counted), when that
--       was counted (ms; 0: now)
--       a threshold: see crossed_thresholds; needs the keys of grants
--       then the prices, see count_spend
--
-- Reply now                      applied, or it was before: a number costs less than a list
--       {OK, now, words...}      the same, and words:
--           paid METERm CREDITED OVERAGE  for each meter, where the option `tells` asks for it
--           late PERIOD          where the usage belongs to a closed period; with ` free` if a pause has voided its invoice
--           notice               where handlers are notified
--           subjects             where no more subjects can be stored
--       {DUPLICATE, now}         the number was applied before
--       {GAP, last}              a number before it is missing
--       {FENCED, last}           the producer is closed
--       {4, now, rev, state}     STALE, with SETTLE_OFFSET added
--       {TOO_MUCH, field}        applied, except for a meter whose total would pass 9 * 10^15
--       {INVALID_FIELD, field}   numbered, but not applied: a field of the counters or of an ended period is invalid. Later
--                                settlements need not wait for its repair
--       {EVENT_CONFLICT, now, kept}  numbered, but not applied: the event id has counted another quantity
--       {EVENT_PARTLY, now, kept}    not applied: the event id has counted some of these meters
--include confirm_view
--include unpack_head
--include unpack_meter
--include release_hold
--include take_number
--include classify_units
--include report_units
--include note_row_use
--include write_counters
local rev, terms, customer, caller_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[#ARGV]
local call, read, pack = redis.call, struct.unpack, cmsgpack.pack
local until_ms, first_start_ms, first_end_ms, next_end_ms, outlive_ms, seal_delay_ms,
  meter_count, rate_count, threshold_count, subject_count, priced_count, meters_at = read('<ddddddddddd', terms)
local subject_keys, subject_words, subject_terms, write_subjects
if subject_count > 0 then -- Included here, so that other requests do not pay for creating the functions.
--include pop_subjects
  subject_keys, subject_words, subject_terms = pop_subjects(KEYS, ARGV, subject_count, 2)
end
--audited --include audit_usage
--audited local audit_key, audit_details, noted_count = table.remove(KEYS), table.remove(ARGV, #ARGV - 2), 0
--audited local noted = {nil, nil, nil, nil, nil, nil, nil} -- With room for one meter.
local counters_key, state_key, totals_key, waiting_key, producer_key, grants_key, ledger_key, notices_key = unpack(KEYS)
local options = ARGV[4] ~= '' and cjson.decode(ARGV[4])
local hold_slot, number = read('<dd', ARGV[#ARGV - 1])
local fields = call('HMGET', counters_key, 'h', unpack(ARGV, SETTLE_NAMES + 2, #ARGV - 2))
local seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
local now, period_start_ms, period_end_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms,
  first_end_ms, next_end_ms, caller_ms, known_rev, seen_ms, begins_ms, ends_ms, false)
if verdict then
  return {verdict[1] + SETTLE_OFFSET, unpack(verdict, 2)}
end
local remember, partly_reply, counted_reply
if options and options.event then
--include compare_event
  remember, partly_reply, counted_reply = compare_event(KEYS[notices_key and 9 or 6], options.event, now)
end
verdict = partly_reply or take_number(producer_key, number, now) or counted_reply
if verdict then
  return verdict
end
if ends_ms == 0 then
  begins_ms, ends_ms = period_start_ms, period_end_ms
elseif ends_ms ~= period_end_ms then
--include close_period
  local damaged = close_period(counters_key, totals_key, now, period_start_ms, period_end_ms)
  if damaged then
    return {INVALID_FIELD, damaged}
  end
  fields = call('HMGET', counters_key, 'h', unpack(ARGV, SETTLE_NAMES + 2, #ARGV - 2))
  seen_ms, begins_ms, ends_ms, expires_ms, known_rev = unpack_head(fields[1])
end
local backdated_period, drops_backdated, pay, keep_grants, is_repeat, remember_key, reports_payment, add_cost, spend_rate_count
if options then
--include read_options
  backdated_period, drops_backdated, pay, keep_grants, is_repeat, remember_key, reports_payment = read_options(options, KEYS,
    rev, now, period_start_ms, period_end_ms, begins_ms, hold_slot, fields, meter_count)
end
if subject_keys then -- First: nothing of the customer is written where a subject's counters are damaged.
--include settle_subjects
  write_subjects = settle_subjects(subject_keys, subject_words, subject_terms, begins_ms, ends_ms, hold_slot,
    not (is_repeat or backdated_period and drops_backdated), now)
end
local rates_at, current_slot = meters_at + METER_BYTES * meter_count, math.floor(now / HOLD_SLOT_MS)
local thresholds_at = rates_at + SETTLED_RATE_BYTES * rate_count
if priced_count > 0 then
--include count_spend
  add_cost, spend_rate_count = count_spend(terms, thresholds_at + THRESHOLD_BYTES * threshold_count)
end

local words, backdated_units, source_units = {}, {}, nil
local has_recorded, begins_to_wait, lasts_ms, priced_units, spent, refused_field = false, false, QUARTER_HOUR_MS, 0, nil, nil
local hset, hset_count = {counters_key, 'h', nil, nil, nil, nil, nil}, 3 -- With room for two fields.
for place = 2, meter_count + 1 do
  local quantity, released, allowance, cap, reports_included, reports_overage, event =
    read('<ddddddd', terms, meters_at + METER_BYTES * (place - 2))
  local name = ARGV[SETTLE_NAMES + place]
  local included, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], name)
  held, held_before = release_hold(hold_slot, released, current_slot, slot, held, held_before)
  if event == PRICE_ROW then
    quantity = math.min(quantity, priced_units)
  elseif place == priced_count + 2 then
    quantity = spent or quantity
  end
  if quantity > 0 and not is_repeat then
    has_recorded = true
    local units, within, by_grants, by_credits, beyond, over_cap, is_too_much, reported
    units, within, by_grants, by_credits, beyond, over_cap, extras, is_too_much = classify_units(name, quantity, included,
      overage, extras, allowance, cap, pay, place - 1, backdated_period and backdated_units, drops_backdated, options)
    refused_field = refused_field or is_too_much and name
    if add_cost and place < priced_count + 2 then
      spent = add_cost(place - 1, overage, beyond, units - within - over_cap)
    end
    reported, source_units = report_units(event, within * reports_included, beyond * reports_overage, over_cap, units,
      source_units)
    priced_units = event ~= PRICE_ROW and beyond or priced_units
    begins_to_wait = begins_to_wait or reported > 0 and pending == 0
    words[#words + 1] = reports_payment and string.format('paid %s %.0f %.0f', name, by_credits, beyond)
    included, overage, pending = included + within, overage + beyond, pending + reported
    note_row_use(counters_key, name, event, beyond)
    --audited noted[noted_count + 1], noted[noted_count + 2], noted[noted_count + 3] = name, within, by_grants
    --audited noted[noted_count + 4], noted[noted_count + 5], noted[noted_count + 6] = by_credits, beyond, over_cap
    --audited noted[noted_count + 7], noted_count = reported, noted_count + 7
  end
  local packed = pack(FORM, included, overage, pending, current_slot, held, held_before, extras)
  hset[hset_count + 1], hset[hset_count + 2], hset_count = name, packed, hset_count + 2
end
if rate_count > 0 then
--include correct_rates
  hset_count, lasts_ms = correct_rates(terms, rates_at, rate_count, spend_rate_count, spent, fields, ARGV, SETTLE_NAMES,
    meter_count + 2, hset, hset_count, now)
end
if options then
--include apply_options
  apply_options(words, remember or remember_key, totals_key, backdated_period, backdated_units)
end
if notices_key then
--include notify_handlers
  words[#words + 1] = notify_handlers(notices_key, customer, terms, thresholds_at, threshold_count, fields, hset,
    pay and keep_grants, now, begins_ms, ends_ms)
end

--audited audit_usage(audit_key, producer_key, math.abs(number), customer, now, begins_ms, backdated_period, audit_details, noted)
local new_expiry_ms = math.max(now + lasts_ms, has_recorded and ends_ms + outlive_ms or 0)
if begins_to_wait then
--include schedule_seal
  new_expiry_ms = schedule_seal(waiting_key, customer, seal_delay_ms, ends_ms, new_expiry_ms, now)
end
write_counters(hset, hset_count, now, begins_ms, ends_ms, rev, expires_ms, new_expiry_ms, 0)
words[#words + 1] = write_subjects and write_subjects()
return refused_field and {TOO_MUCH, refused_field} or words[1] and {OK, now, unpack(words)} or now
