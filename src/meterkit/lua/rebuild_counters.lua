#!lua
-- rebuild_counters: raises a customer's counters of this period to what the audit log has, after the store lost data.
--
-- Lost units that go to Stripe do not become pending again, because Stripe may have them. In the order of the tokens:
-- - They count as delivered, as far as Stripe has counted more of the event name than the store knows.
-- - The rest is parked, one intent for each meter, and for each price that has ended. All that is parked here of an event name is compared together with
--   Stripe's summary of all minutes up to then.
-- If invoice lines bill the period, Stripe has none of its units before it ends, and they become pending again.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] hash  intents     KEYS[5] zset  parked: since when (ms)    KEYS[6] zset  compare: when they are compared (ms)
-- KEYS[7] stream  of the audit log    KEYS[8] list  ledger of changes
-- KEYS[9] zset  `dirty`: customers by when their pending usage is due to be sealed (ms)
-- ARGV  1 rev   2 terms, as those of `seal`   3 the customer
--       4 a JSON object:
--         dry: 1: nothing is written
--         period: first instant of the period in the audit log (ms)
--         stripe: the Stripe customer; empty: not linked
--         id: 32 new hex digits; by: the operator, for the ledger
--         minutes: as ARGV[6] of `seal`
--         meters: token to name; units {included, granted, credited, overage, beyond the cap, late, going to Stripe};
--         unsent: of the last ones, those that no meter event bills: {recorded again as late, on invoice items, dropped};
--         prices: ended price segments, see end_price_segment; and missed: {units, fields of their intent} that may have
--         had a price that has ended: these are parked first
--         events: token to event name, of all known meters
--         counted: event name to the units that Stripe has counted in the period
--         by_lines: whether invoice lines bill the period
--       last: the caller's clock (ms)
-- Reply {OK, now, JSON: token to missing units}: included, granted, credited, overage, beyond the cap, late, delivered,
--                                parked, left: units that are not raised, because they go to Stripe and the customer is
--                                not linked, or the meter has no event name
--       {AUDIT_WAITS, now}       entries of the audit log are not drained yet
--       {STALE, now, rev, state}
--       {BROKEN, now, field}     a field that must be a whole number is not one
--       {OTHER_PERIOD, now, first instant (ms)}
--       {NO_MINUTE, now}         the period has no minute left for an intent
--include confirm_counters
--include close_past_period
--include append_history
--include park_rebuilt
--include sorted_keys
--include store_rebuilt_counts
--include store_rebuilt_intents
local counters_key, state_key, totals_key, intents_key, parked_key, compare_key, audit_key, history_key = unpack(KEYS)
local dirty_key = KEYS[9]
local rev, terms, customer, caller_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[#ARGV]
local wanted = cjson.decode(ARGV[#ARGV - 1])
local _, _, _, _, outlive_ms, least_life_ms = struct.unpack('<dddddd', terms)
local call, text, taken = redis.call, string.format, {}

local now, verdict, head, meters, totals, period_start_ms, period_end_ms = confirm_counters(counters_key, state_key, totals_key,
  rev, terms, caller_ms)
if verdict then
  return verdict
elseif call('XLEN', audit_key) > 0 then
  return {AUDIT_WAITS, now}
end
head, meters, totals = close_past_period(counters_key, totals_key, head, meters, totals, now, period_start_ms, period_end_ms)
local begins_ms, expires_ms = head and head.begins_ms or period_start_ms, head and head.expires_ms or 0
if math.abs(begins_ms - wanted.period) >= 2 * MINUTE_MS then
  return {OTHER_PERIOD, now, text('%.0f', begins_ms)}
end
for _, minute in ipairs(wanted.minutes) do
  taken[minute] = true
end
local period, span = text('%.0f', begins_ms), {begins_ms = begins_ms, ends_ms = period_end_ms}
local classes = {'included', 'granted', 'credited', 'overage', 'over_cap', 'late'}
local unsent_letters = {'t', 'af', 'z'}
local done, changed, made, entries, shares, is_pending = {}, {}, {}, {}, {}, false

local function total(token, letters)
  local sum = 0
  for letter in string.gmatch(letters, '.') do
    sum = sum + (totals[period .. '|' .. token .. letter] or 0)
  end
  return sum
end

-- Units shared by the meters of an event name. base: known to the store; there: what Stripe has counted beyond them.
local function share_of(event)
  if not shares[event] then
    local share = {base = 0, parked = 0}
    for token, name in pairs(wanted.events) do
      if name == event then
        share.base = share.base + total(token, 'qlkd') - total(token, 'QLKD')
      end
    end
    share.there = math.max(0, (wanted.counted[event] or 0) - share.base)
    shares[event] = share
  end
  return shares[event]
end

for _, token in ipairs(sorted_keys(wanted.meters)) do
  local asked, event = wanted.meters[token], wanted.events[token]
  local meter, units, raised = meters[token] or read_meter(EMPTY_METER), asked.units, 0
  local sent = math.max(0, units[7] - meter.pending - total(token, 'pqlkdxzaft') + total(token, 'QLKDXZ'))
  local lacks, delivered, parked, forgotten, forgotten_sum = {}, 0, 0, {}, 0
  for place, letters in ipairs(unsent_letters) do
    local known, letter = total(token, letters) - total(token, string.upper(letters)), string.sub(letters, -1)
    forgotten[letter] = math.min(sent, math.max(0, asked.unsent[place] - known))
    sent, forgotten_sum = sent - forgotten[letter], forgotten_sum + forgotten[letter]
  end
  for place, class in ipairs(classes) do
    lacks[place] = math.max(0, units[place] - meter[class])
    raised = raised + lacks[place]
  end
  local is_left = sent > 0 and (wanted.stripe == '' or not event)
  local to_pending = wanted.by_lines and not is_left and sent or 0
  if sent > to_pending and not is_left then
    local share = share_of(event)
    delivered = math.min(sent, share.there)
    parked = math.min(sent - delivered, VALUE_MOST)
    share.there, share.base = share.there - delivered, share.base + delivered
  end
  if raised + sent + forgotten_sum > 0 then
    lacks[7], lacks[8], lacks[9], forgotten.d = delivered, parked, is_left and math.max(raised, sent) or 0, delivered
    done[token] = text('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f', unpack(lacks))
  end
  if raised + sent + forgotten_sum > 0 and not is_left then
    for place, class in ipairs(classes) do
      meter[class] = meter[class] + lacks[place]
    end
    meter.pending = meter.pending + to_pending
    meters[token], changed[token] = meter, forgotten
    local own = {customer = customer, period = period, meter = token, event = event}
    if not park_rebuilt(made, wanted, span, meters, taken, shares[event], own, parked, now) then
      return {NO_MINUTE, now}
    end
    local fate = to_pending > 0 and text('%.0f pending', to_pending) or text('%.0f delivered, %.0f parked', delivered, parked)
    entries[#entries + 1] = {'rebuilt', text('%.0f', now), '', text('%.0f of %s: %s', raised - lacks[6], asked.name, fate),
      wanted.by}
    is_pending = is_pending or to_pending > 0
  end
end
local reply = {OK, now, cjson.encode(done)}
if wanted.dry == 1 or not next(changed) then
  return reply
end
store_rebuilt_counts(counters_key, totals_key, period, wanted.meters, meters, changed)
store_rebuilt_intents(intents_key, parked_key, compare_key, totals_key, made, shares, now)
call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
append_history(history_key, entries)
local longer_ms = math.max(expires_ms, period_end_ms + outlive_ms, now + least_life_ms)
call('HSET', counters_key, 'h', cmsgpack.pack(FORM, now, begins_ms, period_end_ms, longer_ms, rev))
if is_pending then
  call('ZADD', dirty_key, now, customer) -- The next seal finds when they are due.
end
if longer_ms > expires_ms then
  call('PEXPIREAT', counters_key, longer_ms)
end
return reply
