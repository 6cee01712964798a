#!lua
-- correct_usage: subtracts recorded units of this period, once per correction id. Order: units beyond the cap (not billed),
-- overage, credits, grants, included. Of prices by model the one used last goes first.
-- - Pending units are subtracted directly.
-- - Units of the open price segment that Stripe has are subtracted by an intent with a negative value.
-- - So are those of earlier periods that no invoice has yet, as amid a paid year.
-- - Units on an invoice line are left to a credit note.
-- - Other sealed units stay recorded, and are reported.
-- Overage that an earlier correction of this period has compensated counts as corrected, whatever its id.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] zset  unlinked    KEYS[5] hash  grants   KEYS[6] hash  their ledger    KEYS[7] list  ledger of changes
-- KEYS[8] string  the correction's request and result    KEYS[9] set  digests of the customer's correction ids; each ends
-- the name of a key like KEYS[8]    KEYS[10] hash  intents    KEYS[11] zset  outbox
-- KEYS[12] stream  optional: of the audit log
-- ARGV  1 rev   2 terms, as those of `seal`   3 the customer
--       4 the correction (JSON): id, by, reason; how: compensation for units that Stripe has, for a repeated call;
--         meters: {name, token, quantity, events: {token, 1: included units are sent, too; 0: they are not} for the meter
--         and its derived meters, rows: see lower_model_rows} each
--       5 digest of the id
--       6 how to send (JSON):
--         stripe: the only Stripe customer of this period's deliveries; empty: none, or several
--         nonce: 32 new hex digits; events: token to event name
--         taken: minutes of intents that the Stripe customer had through another customer (ms)
--         spend: see lower_spend; dry: whether nothing is written; by_lines: whether invoice lines bill the usage: then no
--         negative event is queued (events is empty), and ended price segments lose the units that are taken back
--         billed: what invoices have: see sealed_units; lines: by meter, see assign_lines; earlier: see take_back_earlier; changed: PERIOD|y as text, before
--         the invoices were read; nil: negative events take back the units of all price segments
--       last: the caller's clock (ms)
-- A correction is remembered for 400 days.
-- Reply {OK, now, JSON}          asked: ARGV[4]; ends: end of the period (ms); by_hand: by meter, units left to credit notes,
--                                see assign_lines; done: by meter, a text of these numbers: units taken back as overage,
--                                credited, granted and included; units sealed before; their overage that Stripe has or will
--                                get and that needs compensation; units never recorded; units returned to grants;
--                                micro-credits returned to credits; units taken back that Stripe had; units beyond the cap
--       {DONE_BEFORE, now, JSON} of the first call: nothing is done
--       {STALE, now, rev, state}
--       {BROKEN, now, field}     a field that must be a whole number is not one: nothing is done
--       {CHANGING, now, 1}       prices are being changed: nothing is done
--       {CHANGING, now, 0}       prices have changed since the invoices were read: nothing is done
--include dry_run
local redis, stop_writing = dry_run()
--include confirm_counters
--include close_past_period
--include return_to_grants
--include append_history
--include audit_correction
--include queue_negative_intents
--include take_back_earlier
--include lower_spend
--include lower_model_rows
--include set_of
--include sealed_units
--include take_class_units
--include leave_to_credit_notes
--include clamp_price_segments
local counters_key, state_key, totals_key, unlinked_key, grants_key, ledger_key = unpack(KEYS, 1, 6)
local history_key, once_key, corrections_key, intents_key, outbox_key, audit_key = unpack(KEYS, 7)
local rev, terms, customer, asked, digest, how_to_send = unpack(ARGV, 1, 6)
local caller_ms, correction, sending = ARGV[#ARGV], cjson.decode(asked), cjson.decode(how_to_send)
local call, text, entries = redis.call, string.format, {}

local now, verdict, head, meters, totals, period_start_ms, period_end_ms = confirm_counters(counters_key, state_key, totals_key,
  rev, terms, caller_ms)
if verdict then
  return verdict
end
local before = call('GET', once_key)
if before then
  return {DONE_BEFORE, now, before}
end
head, meters, totals = close_past_period(counters_key, totals_key, head, meters, totals, now, period_start_ms, period_end_ms)
if sending.dry then
  stop_writing()
end
sending.customer, sending.made, sending.back, sending.taken = customer, 0, {}, set_of(sending.taken)
local keys = {intents = intents_key, outbox = outbox_key, totals = totals_key, counters = counters_key, audit = audit_key}
local period, done, _, untouched = text('%.0f', head and head.begins_ms or period_start_ms), {}, read_counters(counters_key)
local billed, by_hand = sending.billed, {}
local is_held = billed and tonumber(totals[period .. '|w'] or '0') > now
if is_held or billed and (totals[period .. '|y'] or '') ~= billed.changed then
  return {CHANGING, now, is_held and 1 or 0}
end
local sealed_in, to_compensate, in_open, on_lines = sealed_units(totals, period, billed)
sending.ended = on_lines

local function take(...)
  return take_class_units(meters, sealed_in, ...)
end

for i, request in ipairs(correction.meters) do
  local name, token, quantity, events, rows = unpack(request)
  local lower = lower_model_rows(counters_key, meters, rows, events, token, sending.back, totals, period)
  local meter, left = meters[token] or read_meter(EMPTY_METER), quantity
  local over_cap, overage, credited, granted, included, sealed, sealed_included
  local credited_before, granted_before, repaid = meter.credited, meter.granted, (totals[period .. '|' .. token .. 'r'] or 0) + 0
  local tokens, sent_included, back, back_included = {}, {}, 0, 0
  for _, event in ipairs(events) do
    tokens[#tokens + 1] = event[1]
    sent_included[#sent_included + 1] = event[2] == 1 and event[1] or nil
  end
  local behind = #sent_included == #tokens and meter.included or 0
  left, over_cap = take(meter, 'over_cap', left, meter.over_cap, {}, 0)
  left, overage, sealed = take(meter, 'overage', left, math.max(0, meter.overage - repaid), tokens, behind)
  local owed = to_compensate(sealed, tokens, behind + repaid)
  left, credited = take(meter, 'credited', left, meter.credited, {}, 0)
  left, granted = take(meter, 'granted', left, meter.granted, {}, 0)
  left, included, sealed_included = take(meter, 'included', left, meter.included, sent_included, 0)
  if head and sending.stripe ~= '' then
    back = queue_negative_intents(keys, head, meters, totals, sending, tokens, owed, now)
    back_included = queue_negative_intents(keys, head, meters, totals, sending, sent_included, sealed_included, now)
  end
  meter.overage, meter.included = meter.overage - back, meter.included - back_included
  overage, included, owed = overage + back, included + back_included, owed - back
  local ended, earlier, unbilled = 0, 0, 0
  if billed then
    unbilled = take_back_earlier(keys, totals, sending, billed.earlier, correction, request, tokens, left, now)
    owed, ended, earlier, by_hand[name] = leave_to_credit_notes(totals_key, totals, period, token, billed.lines[name], owed,
      in_open(tokens, behind, repaid), left - unbilled)
  end
  lower_spend(counters_key, meters, sending.spend, token, meter, overage, credited, granted)
  lower(sending.spend, overage)
  meter.late = math.min(meter.late, meter.included + meter.overage + meter.granted + meter.credited + meter.over_cap)
  local micro = credited > 0 and return_to_grants(grants_key, ledger_key, 'c', name, period, credited, credited_before, now) or 0
  local units = granted > 0 and return_to_grants(grants_key, ledger_key, 'm', name, period, granted, granted_before, now) or 0
  for _, changed in ipairs(tokens) do
    if meters[changed] then
      call('HSET', counters_key, changed .. 'm', pack_meter(meters[changed]))
      clamp_price_segments(sending.by_lines, totals_key, totals, period, changed, meters[changed], sealed_in)
    end
  end
  if owed + ended > 0 then
    local field = period .. '|' .. token .. 'r'
    totals[field] = text('%.0f', repaid + owed + ended)
    call('HSET', totals_key, field, totals[field])
    call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
  end
  local taken = over_cap + overage + credited + granted + included + unbilled
  local sent = sealed + sealed_included - back - back_included + earlier
  left = left - earlier - unbilled
  -- As text: cjson writes only 14 digits of a number.
  done[name] = text('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f', overage + unbilled, credited, granted, included,
    sent, owed, left, units, micro, back + back_included + unbilled, over_cap)
  entries[i] = {'correction', text('%.0f', now), text('%.0f of %s to be taken back', quantity, name),
    text('%.0f taken back, %.0f sent to Stripe before, %.0f never recorded: %s', taken, sent, left, correction.reason),
    correction.by}
end
local is_waiting = false
for _, meter in pairs(meters) do
  is_waiting = is_waiting or meter.pending > 0
end
for name, value in pairs(totals) do
  is_waiting = is_waiting or string.find(name, '|....p$') and value ~= '0'
end
if not is_waiting then
  call('ZREM', unlinked_key, customer)
end
append_history(history_key, entries)
audit_correction(audit_key, customer, now, period, correction, untouched, meters, sending.back)
local outcome = cjson.encode({asked = asked, done = done, by_hand = billed and by_hand, ends = text('%.0f', period_end_ms)})
call('SET', once_key, outcome, 'PX', FOUR_HUNDRED_DAYS_MS)
call('SADD', corrections_key, digest)
call('PEXPIRE', corrections_key, FOUR_HUNDRED_DAYS_MS)
return {OK, now, outcome}
