#!lua
-- restore: takes recorded units of this period back, once an id: overage before credits before grants before included.
-- What is reported of them comes off what is pending; what Stripe was sent already is told, and stays recorded.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] zset  unlinked    KEYS[5] hash  grants   KEYS[6] hash  their ledger    KEYS[7] stream  ledger of changes
-- KEYS[8] string  remembers this correction: what was asked, and what was done
-- ARGV  1 rev   2 terms   3 the customer   4 the correction (JSON): id, by, reason, how: what is to be done with units that
--       Stripe was sent, for whoever asks again; meters: {its name, token, quantity, report included (0/1), report
--       overage (0/1), what a credited unit costs (micro-credits)} each
--       last: the caller's clock (ms)
-- terms as of `seal`
-- A correction is remembered for 400 days.
-- Reply {0, now, JSON: asked, ARGV[4]; ends, of the period (ms); done, by meter: units that were taken back as overage,
--       credited, granted and included, that Stripe was sent, and that were never recorded; then what grants got
--       back, in units, and credits, in micro-credits}    {1, now, the same of the first time}    {2, now, rev, state} stale
--       {3, now} clock    {4, now, field} not a whole number; but for the first, nothing is done
--include confirm_view
--include close_period
--include give_units_back
--include enter
local counters_key, state_key, totals_key, unlinked_key, grants_key, ledger_key, history_key, once_key = unpack(KEYS)
local rev, terms, customer, asked = unpack(ARGV, 1, 4)
local caller_ms, correction = ARGV[#ARGV], cjson.decode(asked)
local until_ms, first_start_ms, first_end_ms, next_end_ms = struct.unpack('<dddd', terms)
local call, text, totals = redis.call, string.format, {}

local head, meters, damaged = read_counters(counters_key)
damaged = damaged or whole_numbers(totals_key, totals, {'|e$', '|....[pigcomqlkdxz]$'})
if damaged then
  return {4, server_ms(caller_ms), damaged}
end
local known = head or {seen_ms = 0, ends_ms = 0, rev = ''}
local now, starts_ms, finishes_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms, first_end_ms,
  next_end_ms, caller_ms, known.rev, known.seen_ms, known.ends_ms, false)
if verdict then
  return verdict
end
local before = call('GET', once_key)
if before then
  return {1, now, before}
end
if head and head.ends_ms ~= finishes_ms then
  close_period(counters_key, totals_key, now, starts_ms, finishes_ms)
  head, meters = read_counters(counters_key)
  totals = {}
  whole_numbers(totals_key, totals, {})
end
local period = text('%.0f', head and head.begins_ms or starts_ms)
local done, entries = {}, {}

local function take(meter, name, left, reported)
  local part = math.min(left, meter[name])
  local sent = reported == 1 and math.max(0, part - meter.pending) or 0
  meter[name] = meter[name] - (part - sent)
  meter.pending = meter.pending - reported * (part - sent)
  return left - part, part - sent, sent
end

for i, one in ipairs(correction.meters) do
  local name, token, quantity, reports_included, reports_overage, cost = unpack(one)
  local meter, left = meters[token] or open_meter(EMPTY_METER), quantity
  local overage, credited, granted, included, sent_overage, sent_included
  local paid = meter.credited
  left, overage, sent_overage = take(meter, 'overage', left, reports_overage)
  left, credited = take(meter, 'credited', left, 0)
  left, granted = take(meter, 'granted', left, 0)
  left, included, sent_included = take(meter, 'included', left, reports_included)
  meter.late = math.min(meter.late, meter.included + meter.overage + meter.granted + meter.credited)
  local micro = credited == paid and MOST or credited * cost
  if credited > 0 then
    micro = give_units_back(grants_key, ledger_key, 'c', name, period, micro, now)
  end
  local units = granted > 0 and give_units_back(grants_key, ledger_key, 'm', name, period, granted, now) or 0
  if meters[token] then
    call('HSET', counters_key, token .. 'm', pack_meter(meter))
  end
  local taken, sent = overage + credited + granted + included, sent_overage + sent_included
  -- As text: in JSON a number has 14 digits here.
  done[name] = text('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f', overage, credited, granted, included, sent, left, units,
    credited > 0 and micro or 0)
  entries[i] = {
    'correction', text('%.0f', now), text('%.0f of %s to be taken back', quantity, name),
    text('%.0f taken back, %.0f sent to Stripe before, %.0f never recorded: %s', taken, sent, left, correction.reason),
    correction.by,
  }
end
local waits = false
for _, meter in pairs(meters) do
  waits = waits or meter.pending > 0
end
for name, value in pairs(totals) do
  waits = waits or string.find(name, '|....p$') and value ~= '0'
end
if not waits then
  call('ZREM', unlinked_key, customer)
end
enter(history_key, entries)
local kept = cjson.encode({asked = asked, done = done, ends = text('%.0f', finishes_ms)})
call('SET', once_key, kept, 'PX', FOUR_HUNDRED_DAYS_MS)
return {0, now, kept}
