-- bill_late_usage: bills pending usage of closed periods whose invoices are final, or will be before Stripe counts an intent
-- sealed now. The usage is removed from its period.
-- - If the open period bills the meter at the same price, the usage is recorded there again, as overage (or included) and
--   as late, and becomes pending there. Its own period counts it as t.
-- - At another price, an invoice item bills the usage at its own price (see queue_item).
-- - If neither is possible, no invoice bills it, and its own period counts it as t. So it is with included units, and if a
--   pause has voided the period's invoice (PERIOD|v).
--   keys: counters, totals, history, items, audit (nil: no audit log); head, meters: see read_counters; totals: as read
--   events: token to event name; usage of a meter without one stays pending
--   asked: since, before, latest (ms; see decisions/subscription_periods.py), hour, margin (ms); meters: token to the class
--   in which the open period records the meter (empty: none), name, price in words, label of that price, token of the meter
--   that has the price, 1 if it is the same for each unit, 1 if Stripe gets included units, too; item: terms of an invoice
--   item, nil: none may be made
--   own: customer, nonce, rev, and start and end of the open period (ms)
-- Returns the head, and a list for the reply: {period, token, units, outcome} each.
--include append_history
--include audit_usage
--include price_late_usage
--include queue_item
local function bill_late_usage(keys, head, meters, totals, events, asked, own, now)
  local text, late = string.format, {}
  local outcomes = {[0] = 'not billed', 'billed in the period that is open', 'billed by an invoice item'}
  local function is_final(period)
    -- By its start: the last period of an ended subscription may end some minutes later.
    local begins_ms, ends_ms = tonumber(period), tonumber(totals[period .. '|e'])
    local made_ms = begins_ms >= asked.before and asked.latest or ends_ms
    local draft_ms = math.max(made_ms + asked.hour, tonumber(totals[period .. '|h'] or '0'))
    return totals[period .. '|f'] or begins_ms >= asked.since and begins_ms < asked.latest and now >= draft_ms - asked.margin
  end

  local function record_again(period, token, class, quantity)
    if not head then
      head = {seen_ms = now, begins_ms = own.period_start_ms, ends_ms = own.period_end_ms, rev = own.rev}
      redis.call('HSET', keys.counters, 'h', cmsgpack.pack(FORM, now, head.begins_ms, head.ends_ms, NEVER_MS, head.rev))
    end
    local meter = meters[token] or read_meter(EMPTY_METER)
    meters[token] = meter
    meter[class], meter.late, meter.pending = meter[class] + quantity, meter.late + quantity, meter.pending + quantity
    redis.call('HSET', keys.counters, token .. 'm', pack_meter(meter))
    if keys.audit then
      local within = class == 'included' and quantity or 0
      audit_usage(keys.audit, own.nonce, #late + 1, own.customer, now, head.begins_ms, period, '',
        {token .. 'm', within, 0, 0, quantity - within, 0, quantity})
    end
  end

  local function bill(period, token, terms, label, quantity, is_billed)
    local class, meter_name, price, open_label, _, is_flat = unpack(terms)
    local meter, value, outcome = meters[token] or read_meter(EMPTY_METER), text('%.0f', quantity), NOT_BILLED
    if is_billed and label == open_label and class ~= '' and math.max(meter[class], meter.late, meter.pending) + quantity <= MOST then
      outcome = BILLED_IN_PERIOD
      record_again(period, token, class, quantity)
    elseif is_billed and is_flat == 1 and asked.item and string.find(label, '^%d+/%d+$') then
      outcome, price = BILLED_BY_ITEM, ''
      local item = {customer = own.customer, period = period, meter = token, name = meter_name, event = events[token],
        label = label, value = value, till = totals[period .. '|e']}
      for field, known in pairs(asked.item) do
        item[field] = known
      end
      queue_item(keys.items, keys.totals, own.nonce .. '-' .. #late + 1, item, now)
    end
    if outcome ~= BILLED_BY_ITEM then
      redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 't', value)
    end
    append_history(keys.history, {{'late', text('%.0f', now), period .. ' ' .. value .. ' of ' .. meter_name ..
      (label == INCLUDED_LABEL and ' included' or price), outcomes[outcome], 'clock'}})
    late[#late + 1] = {period, token, value, outcome}
  end

  for _, name in ipairs(sorted_keys(totals)) do
    local period, token = string.match(name, '^(%d+)|(....)p$')
    if period and events[token] and is_final(period) then
      local terms = asked.meters[token] or {'', events[token], '', '-', token, 0, 0}
      for _, part in ipairs(price_late_usage(totals, period, token, tonumber(totals[name]), terms[4], terms[5], nil, terms[7])) do
        bill(period, token, terms, part[1], part[2], not totals[period .. '|v'])
      end
      redis.call('HDEL', keys.totals, name)
      totals[name] = nil
    end
  end
  return head, late
end
