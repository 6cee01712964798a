-- queue_negative_intents: takes back units that Stripe has, by intents with values below 0: one for an event, in a minute of its own.
--   keys: of intents, outbox, totals and counters; head, meters: as read_counters gives them; totals: as read, brought up
--   to date; sending: customer, stripe, nonce (32 hex digits), made: how many intents by now, events: token to event name,
--   taken: minutes that they may not have (ms), back: by token what is taken back so far, ended: by token the units that
--   are on invoice lines and stay there; tokens: whose events, in this order; most: how many units
-- What is delivered is taken back once, whatever becomes of the intent that takes it back. Returns how many units are.
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
    -- Without a stamp the free minutes are unknown.
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
