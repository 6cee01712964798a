#!lua
-- seal: seals pending usage of a linked customer into intents: immutable deliveries to Stripe.
--
-- KEYS[1] hash  counters of the customer
-- KEYS[2] hash  state of the customer
-- KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] zset  `dirty`: customers by when their pending usage is due to be sealed (ms)
-- KEYS[5] hash  intents
-- KEYS[6] zset  outbox: intents by when they are due (ms)
-- KEYS[7] list  ledger of changes
-- KEYS[8] zset  invoice items
-- KEYS[9] stream  with an audit log: its stream
--
-- ARGV[1] rev of the caller's view of the customer
-- ARGV[2] terms, see below
-- ARGV[3] nonce: 32 hex digits that are new
-- ARGV[4] the customer
-- ARGV[5] the Stripe customer; empty: not linked, nothing is sealed
-- ARGV[6] a JSON array: minutes of intents that the Stripe customer had through another customer (ms)
-- ARGV[7] empty: no invoices are known; or (JSON) the terms of usage too late for its invoice, see bill_late_usage, with
--       former: event names that the customer's items had: {until when (ms), token to event name} each, oldest first; or,
--       with by_lines, of usage that invoice lines bill, see queue_lines: periods that they bill get no intents. Then `late`
--       has the terms of late usage of the other periods
-- ARGV[8] empty; or `moved`: the counters' period has ended because another one has begun; or (JSON) a cut, before the
--       customer's prices change: till: until when usage recorded from now on is held back (ms, as text); labels: see
--       end_price_segment
-- then each meter: its token, its event name
-- last: the caller's clock (ms)
--
-- Terms: whole numbers as doubles, in ms: when the view expires; start and end of its period; end of the next period; how
--       long the counters outlive their period; how long they live at least
--
-- An intent's timestamp is a whole minute inside its period that no other intent of the event name has, at most three
-- minutes ahead. The last minutes of a period, one for each meter of the event name, are kept for what is sealed after it.
-- Usage stays pending if no minute is free yet, or if its meter has no event name. If a field that must be a whole number
-- is not one, nothing is done.
-- PERIOD|w: prices are being changed: until then (ms) the period's usage stays pending, unless another cut comes.
-- PERIOD|y: when prices changed last. No intent has a minute before either of these.
-- PERIOD|METERv: a free minute before the meter's last timestamp. A cut uses it if it needs a minute that is over at Stripe.
--
-- Reply {OK, now, number of intents or lines, number of meters that wait, late, token, pending...}
--           late: usage that was too late for its invoice: {period, token, quantity, outcome} each; outcome: NOT_BILLED,
--           BILLED_IN_PERIOD or BILLED_BY_ITEM; or usage that no invoice line can bill: WITHOUT_PRICE
--           token, pending: of each meter without an event name
--       {STALE, now, rev, state}
--       {BROKEN, now, field}     a field that must be a whole number is not one
--include confirm_counters
--include close_past_period
--include next_free_minute
--include set_of
--include queue_intent
--include sorted_keys
--include free_past_minute
--include seal_closed_periods
--include end_price_segment
--include is_by_lines
local counters_key, state_key, totals_key, dirty_key, intents_key, outbox_key, history_key, items_key, audit_key = unpack(KEYS)
local rev, terms, nonce, customer, stripe_customer, minutes, invoices, cut_text = unpack(ARGV, 1, 8)
local first_meter, caller_ms = 9, ARGV[#ARGV] -- The first meter's token is ARGV[9].
local _, _, _, _, outlive_ms, keep_ms = struct.unpack('<dddddd', terms)
local call = redis.call
local taken_minutes = set_of(cjson.decode(minutes))

local now, verdict, head, meters, totals, period_start_ms, period_end_ms =
  confirm_counters(counters_key, state_key, totals_key, rev, terms, caller_ms)
if verdict then
  return verdict
end
if stripe_customer == '' then
  call('ZREM', dirty_key, customer)
  return {OK, now, 0, 0, {}}
end
local is_moved, invoicing = cut_text == 'moved', invoices ~= '' and cjson.decode(invoices)
head, meters, totals = close_past_period(counters_key, totals_key, head, meters, totals, now, period_start_ms, period_end_ms,
  is_moved or invoicing and invoicing.by_lines)
local events = {} -- Token to event name.
for i = first_meter, #ARGV - 1, 2 do
  events[ARGV[i]] = ARGV[i + 1]
end
local made_count, waiting_count, due_ms = 0, 0, nil
local unnamed = {} -- Token and pending units of each meter without an event name, in turn.
local ahead_ms = 3 * MINUTE_MS -- How far ahead an intent may be stamped.

local function seal_units(period, token, event, quantity, minute) -- Returns the units beyond 15 digits, Stripe's limit.
  local value = math.min(quantity, VALUE_MOST)
  made_count = made_count + 1
  queue_intent(intents_key, outbox_key, totals_key, nonce .. '-' .. made_count, {
    customer = customer, stripe = stripe_customer, period = period, meter = token, event = event,
    value = string.format('%.0f', value),
  }, minute, now)
  return quantity - value
end

local function wait_until(at_ms)
  waiting_count = waiting_count + 1
  due_ms = math.min(due_ms or at_ms, at_ms)
end

local function wait_for_name(token, quantity)
  wait_until(now + MINUTE_MS)
  unnamed[#unnamed + 1] = token
  unnamed[#unnamed + 1] = string.format('%.0f', quantity)
end

local late, line_switches = {}, nil
if invoicing then -- Included here, so that other calls do not pay for creating the functions.
--include bill_late_usage
--include queue_lines
  local keys = {counters = counters_key, totals = totals_key, history = history_key, items = items_key, audit = audit_key}
  local own = {customer = customer, nonce = nonce, rev = rev, period_start_ms = period_start_ms, period_end_ms = period_end_ms,
    wait_until = wait_until, wait_for_name = wait_for_name}
  if invoicing.by_lines then
    head, late, made_count = queue_lines(keys, head, meters, totals, events, invoicing, own, now)
    own.nonce, line_switches, invoicing = nonce .. 'L', invoicing.switches, invoicing.late -- No item has the id of a line.
  end
  if invoicing then
    local missed
    head, missed = bill_late_usage(keys, head, meters, totals, events, invoicing, own, now)
    for _, usage in ipairs(missed) do
      late[#late + 1] = usage
    end
  end
end
local cut = cut_text ~= '' and not is_moved and cjson.decode(cut_text)
local open_period = string.format('%.0f', head and head.begins_ms or period_start_ms)
local by_lines = line_switches and is_by_lines(line_switches, open_period)
local held_ms = tonumber(totals[open_period .. '|w'] or '0')
local changed_ms = tonumber(totals[open_period .. '|y'] or '0')
if head then
  head.from_ms = math.max(held_ms, changed_ms)
end
local former = invoicing and invoicing.former or {}
seal_closed_periods(totals_key, totals, events, former, meters, taken_minutes, now + ahead_ms, ahead_ms, seal_units,
  wait_until, wait_for_name)
for _, token in ipairs(sorted_keys(meters)) do
  local meter = meters[token]
  if meter.pending > 0 and by_lines then
    wait_until(head.ends_ms)
  elseif meter.pending > 0 and not events[token] then
    wait_for_name(token, meter.pending)
  elseif meter.pending > 0 and held_ms > now and not cut then
    wait_until(held_ms)
  elseif meter.pending > 0 then
    local minute, last_minute, vacant = next_free_minute(head, meters, events, taken_minutes, token, now)
    if cut then
      minute, vacant = free_past_minute(totals_key, totals, head, token, minute, vacant, now)
    end
    if minute <= last_minute and minute <= now + ahead_ms then
      meter.pending = seal_units(open_period, token, events[token], meter.pending, minute)
      meter.stamped_ms = math.max(meter.stamped_ms, minute)
      call('HSET', counters_key, token .. 'm', pack_meter(meter))
      if vacant then
        call('HSET', totals_key, open_period .. '|' .. token .. 'v', string.format('%.0f', vacant))
      end
    end
    if meter.pending > 0 then
      wait_until(minute > last_minute and head.ends_ms or math.max(now + 1000, minute - ahead_ms))
    end
  end
end
if cut then
  call('HSET', totals_key, open_period .. '|w', cut.till)
  end_price_segment(totals_key, open_period, meters, cut.labels, by_lines)
end
if made_count + #late > 0 or cut then
  call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
end
if waiting_count > 0 then
  call('ZADD', dirty_key, due_ms, customer)
else
  call('ZREM', dirty_key, customer)
  if head then
    local expires_ms = math.max(head.ends_ms + outlive_ms, now + keep_ms)
    call('HSET', counters_key, 'h',
      cmsgpack.pack(FORM, head.seen_ms, head.begins_ms, head.ends_ms, expires_ms, head.rev))
    call('PEXPIREAT', counters_key, expires_ms)
  end
end
return {OK, now, made_count, waiting_count, late, unpack(unnamed)}
