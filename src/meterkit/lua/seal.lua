#!lua
-- seal: turns a linked customer's pending usage into intents: immutable deliveries to Stripe.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] zset  dirty       KEYS[5] hash  intents  KEYS[6] zset  outbox: intents by when they are due (ms)
-- KEYS[7] list  ledger of changes    KEYS[8] zset  invoice items    KEYS[9] stream  where there is an audit log: of that
-- ARGV  1 rev   2 terms   3 32 hex digits that are new   4 the customer   5 the Stripe customer; empty: not
--       linked, nothing is sealed    6 a JSON array: minutes that the Stripe customer's intents of another
--       customer have (ms)
--       7 empty: no invoices are known; or (JSON) which usage is too late for its own invoice, see move_late_usage
--       8 empty; or `moved`: the period of the counters is over where another one has begun; or a cut, before the prices of the customer change (JSON): till: until when what is recorded from
--       now on is held back (ms, as text); labels: see end_price_segment
--       then a meter: its token, its event name
--       last: the caller's clock (ms)
-- terms whole numbers as doubles: until when the rev is valid, start and end of the period, end of the
--       next one, how long the counters must outlive the period, and live at least (all ms)
-- An intent's timestamp is a whole minute inside its period that no other intent of the event name has, at most three
-- ahead; the last one of a period is kept for what is sealed after it, for each meter of that name one. Where none is free yet, the usage stays
-- pending; so does that of a meter without an event name. Where a field that must be a whole number is none,
-- nothing is done.
-- PERIOD|w: until then (ms) the period's usage is pending, unless another cut comes: prices are being changed.
-- PERIOD|y: when they were changed last. No intent has a minute before either. PERIOD|METERv: a minute before the
-- last stamp that no intent has: a cut stamps with minutes that are over at Stripe, where one is free.
-- Reply {0, now, intents made, meters still pending, {of usage that was too late its period, token and quantity, and 1
--       where it is billed in this period, 2 by an invoice item, else 0...}, of each meter without an event name its token and what is
--       pending...}    {2, now, rev, state} stale    {3, now} clock    {4, now, field} not a whole number
--include confirm_counters
--include close_past_period
--include next_free_minute
--include set_of
--include queue_intent
--include sorted_keys
--include free_past_minute
--include end_price_segment
local counters_key, state_key, totals_key, dirty_key, intents_key, outbox_key, history_key, items_key, audit_key =
  unpack(KEYS)
local rev, terms, nonce, customer, stripe_customer, minutes, invoices, cutting = unpack(ARGV, 1, 8)
local first_event, caller_ms = 9, ARGV[#ARGV] -- The event's token: its place in ARGV.
local _, _, _, _, outlive_ms, least_life_ms = struct.unpack('<dddddd', terms)
local call, floor = redis.call, math.floor
local events, taken, nameless = {}, set_of(cjson.decode(minutes)), {}

local now, verdict, head, meters, totals, starts_ms, finishes_ms = confirm_counters(counters_key, state_key, totals_key,
  rev, terms, caller_ms)
if verdict then
  return verdict
end
if stripe_customer == '' then
  call('ZREM', dirty_key, customer)
  return {0, now, 0, 0, {}}
end
local is_moved = cutting == 'moved'
head, meters, totals = close_past_period(counters_key, totals_key, head, meters, totals, now, starts_ms, finishes_ms, is_moved)
for i = first_event, #ARGV - 1, 2 do
  events[ARGV[i]] = ARGV[i + 1]
end
local made, left, due = 0, 0, nil

-- Stripe takes 15 digits in a value; what is beyond stays behind. Returns that.
local function put(period, token, quantity, minute)
  local value = math.min(quantity, VALUE_MOST)
  made = made + 1
  queue_intent(intents_key, outbox_key, totals_key, nonce .. '-' .. made, {
    customer = customer, stripe = stripe_customer, period = period, meter = token, event = events[token],
    value = string.format('%.0f', value),
  }, minute, now)
  return quantity - value
end

local function wait(at_ms)
  left, due = left + 1, math.min(due or at_ms, at_ms)
end

local function wait_for_name(token, quantity)
  wait(now + MINUTE_MS)
  nameless[#nameless + 1] = token
  nameless[#nameless + 1] = string.format('%.0f', quantity)
end

local late = {}
if invoices ~= '' then -- Others do not pay for making these functions.
--include move_late_usage
  head, late = move_late_usage({counters = counters_key, totals = totals_key, history = history_key, items = items_key, audit = audit_key}, head,
    meters, totals, events, cjson.decode(invoices), {customer = customer, nonce = nonce, rev = rev,
    starts_ms = starts_ms, finishes_ms = finishes_ms}, now)
end
local cut = cutting ~= '' and not is_moved and cjson.decode(cutting)
local this = string.format('%.0f', head and head.begins_ms or starts_ms)
local held_ms, changed_ms = tonumber(totals[this .. '|w'] or '0'), tonumber(totals[this .. '|y'] or '0')
if head then
  head.from_ms = math.max(held_ms, changed_ms)
end
for name, value in pairs(totals) do
  local period, token = string.match(name, '^(%d+)|(....)p$')
  local quantity = period and tonumber(value) or 0
  if quantity > 0 and not events[token] then
    wait_for_name(token, quantity)
  elseif quantity > 0 then
    local _, before = meters_of_event(events, meters, token)
    local minute = (floor(totals[period .. '|e'] / MINUTE_MS) - 1 - before) * MINUTE_MS
    while taken[minute] do
      minute = minute - MINUTE_MS
    end
    if minute > now + 3 * MINUTE_MS then -- Behind a minute that was ahead already when the period was cut short.
      wait(minute - 3 * MINUTE_MS)
    else
      while quantity > 0 do
        quantity = put(period, token, quantity, minute)
      end
      call('HDEL', totals_key, name)
    end
  end
end
for _, token in ipairs(sorted_keys(meters)) do
  local meter = meters[token]
  if meter.pending > 0 and not events[token] then
    wait_for_name(token, meter.pending)
  elseif meter.pending > 0 and held_ms > now and not cut then
    wait(held_ms)
  elseif meter.pending > 0 then
    local minute, last, before = next_free_minute(head, meters, events, taken, token, now)
    if cut then
      minute, before = free_past_minute(totals_key, totals, head, token, minute, before, now)
    end
    if minute <= last and minute <= now + 3 * MINUTE_MS then
      meter.pending = put(this, token, meter.pending, minute)
      meter.stamped_ms = math.max(meter.stamped_ms, minute)
      call('HSET', counters_key, token .. 'm', pack_meter(meter))
      if before then
        call('HSET', totals_key, this .. '|' .. token .. 'v', string.format('%.0f', before))
      end
    end
    if meter.pending > 0 then
      wait(minute > last and head.ends_ms or math.max(now + 1000, minute - 3 * MINUTE_MS))
    end
  end
end
if cut then
  call('HSET', totals_key, this .. '|w', cut.till)
  end_price_segment(totals_key, this, meters, cut.labels)
end
if made + #late > 0 or cut then
  call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
end
if left > 0 then
  call('ZADD', dirty_key, due, customer)
else
  call('ZREM', dirty_key, customer)
  if head then
    local expires_ms = math.max(head.ends_ms + outlive_ms, now + least_life_ms)
    call('HSET', counters_key, 'h',
      cmsgpack.pack(FORM, head.seen_ms, head.begins_ms, head.ends_ms, expires_ms, head.rev))
    call('PEXPIREAT', counters_key, expires_ms)
  end
end
return {0, now, made, left, late, unpack(nameless)}
