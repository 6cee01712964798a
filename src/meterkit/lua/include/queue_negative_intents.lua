-- queue_negative_intents: takes back units that Stripe has: queues one intent with a negative value for each event, at a
-- minute of its own.
--   keys: of intents, outbox, totals and counters; head, meters: see read_counters; totals: as read, updated here
--   sending: customer, stripe, nonce (32 hex digits); made: intents so far; events: token to event name; taken: minutes
--   that the intents may not have (ms); back: token to units taken back so far; ended: token to units that stay, because
--   they are on invoice lines; tokens: of the events, in order; most: units at most
-- Delivered units are taken back once, even if the negative intent fails. Returns the units taken back.
--include next_free_minute
--include queue_intent
--include pack_meter
local function queue_negative_intents(keys, head, meters, totals, sending, tokens, most, now)
  local text, done = string.format, 0
  for _, token in ipairs(tokens) do
    local field = text('%.0f|%s', head.begins_ms, token)
    local there, meter = (totals[field .. 'd'] or 0) - (sending.ended[token] or 0), meters[token]
    for letter in string.gmatch('QLKDXZ', '.') do
      there = there - (totals[field .. letter] or 0)
    end
    local part = math.min(most - done, there, VALUE_MOST)
    -- If the meter's last timestamp is unknown, so are its free minutes.
    if part > 0 and meter and meter.stamped_ms > 0 and sending.events[token] then
      local minute, last = next_free_minute(head, meters, sending.events, sending.taken, token, now)
      if minute <= last and minute <= now + 3 * MINUTE_MS then
        sending.made, done, meter.stamped_ms = sending.made + 1, done + part, minute
        queue_intent(keys.intents, keys.outbox, keys.totals, sending.nonce .. '-' .. sending.made, {
          customer = sending.customer, stripe = sending.stripe, period = text('%.0f', head.begins_ms), meter = token,
          event = sending.events[token], value = text('-%.0f', part),
        }, minute, now)
        sending.back[token] = (sending.back[token] or 0) + part
        totals[field .. 'Q'] = text('%.0f', (totals[field .. 'Q'] or 0) + part)
        redis.call('HSET', keys.counters, token .. 'm', pack_meter(meter))
        redis.call('PEXPIRE', keys.totals, FOUR_HUNDRED_DAYS_MS)
      end
    end
  end
  return done
end
