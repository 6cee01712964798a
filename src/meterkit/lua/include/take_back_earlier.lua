-- take_back_earlier: takes back overage of earlier periods that no invoice has yet, as amid a paid year. Each event gets a
-- negative intent at a free minute of its own period.
--   keys: of intents, outbox, totals and the audit log; totals: as read, updated here; sending: see queue_negative_intents
--   earlier: nil, or youngest first {period as text, free minutes (ms)} each; correction, and request of one meter: see
--   correct_usage; tokens: of the events that report the overage, in order; left: units at most
-- Returns the units taken back.
--include audit_correction
--include queue_intent
--include read_meter
local function take_back_earlier(keys, totals, sending, earlier, correction, request, tokens, left, now)
  local text, token, rows, all = string.format, request[2], request[5] or {}, 0
  local function lower(field, units)
    totals[field] = text('%.0f', (totals[field] or 0) - units)
    redis.call('HSET', keys.totals, field, totals[field])
  end
  for _, one in ipairs(earlier or {}) do
    local period, minutes = unpack(one)
    for _, event in ipairs(tokens) do
      local field, there = period .. '|' .. event, totals[period .. '|' .. event .. 'd'] or 0
      for letter in string.gmatch('QLKDXZ', '.') do
        there = there - (totals[field .. letter] or 0)
      end
      local overage = (totals[period .. '|' .. token .. 'o'] or 0) - (totals[period .. '|' .. token .. 'r'] or 0)
      local part, minute = math.min(left - all, there, overage, VALUE_MOST), minutes[#minutes]
      if part > 0 and minute and sending.events[event] then
        minutes[#minutes], sending.made, all = nil, sending.made + 1, all + part
        queue_intent(keys.intents, keys.outbox, keys.totals, sending.nonce .. '-' .. sending.made, {
          customer = sending.customer, stripe = sending.stripe, period = period, meter = event,
          event = sending.events[event], value = text('-%.0f', part),
        }, minute, now)
        totals[field .. 'Q'] = text('%.0f', (totals[field .. 'Q'] or 0) + part)
        lower(period .. '|' .. token .. 'o', part)
        local before, after = {[token] = read_meter(EMPTY_METER), [event] = read_meter(EMPTY_METER)}, {}
        before[token].overage = part
        local rest = part
        for _, row in ipairs(rows) do
          local of_row = row[2] == event and math.min(rest, (totals[period .. '|' .. row[1] .. 'o'] or 0) + 0) or 0
          if of_row > 0 then
            rest = rest - of_row
            lower(period .. '|' .. row[1] .. 'o', of_row)
            before[row[1]] = before[row[1]] or read_meter(EMPTY_METER)
            before[row[1]].overage = of_row
          end
        end
        for changed in pairs(before) do
          after[changed] = read_meter(EMPTY_METER)
        end
        audit_correction(keys.audit, sending.customer, now, period, correction, before, after, {[event] = part})
      end
    end
  end
  return all
end
