-- overtake: pending usage of closed periods whose invoices are final, or will be before an intent of now is counted. It is
-- counted as t of its period; where the plan of the open period bills the meter, it is recorded there once more, as
-- overage (or included) and as late, and is pending there.
--   keys: counters, totals, history; audit or nil; head, meters: as read_counters gives them; totals: as read; events:
--   token to event name: what has none waits for it; asked: since, before, latest (ms; see decisions/subscription_periods.py), hour, margin
--   (ms), meters: a token to the class that the open period records it in (empty: none), its name, its price in words
--   own: customer, nonce, rev, and start and end of the open period (ms)
-- Returns the head, and the list that the reply has.
--include enter
--include enter_usage
local function overtake(keys, head, meters, totals, events, asked, own, now)
  local text, late = string.format, {}
  local function is_final(period)
    -- By its beginning: where a subscription has ended, its last period may end some minutes later.
    local begins_ms, ends_ms = tonumber(period), tonumber(totals[period .. '|e'])
    local made_ms = begins_ms >= asked.before and asked.latest or ends_ms
    local draft_ms = math.max(made_ms + asked.hour, tonumber(totals[period .. '|h'] or '0'))
    return begins_ms >= asked.since and begins_ms < asked.latest and (totals[period .. '|f'] or now >= draft_ms - asked.margin)
  end
  for _, name in ipairs(in_order(totals)) do
    local period, token = string.match(name, '^(%d+)|(....)p$')
    if period and events[token] and is_final(period) then
      local class, meter_name, price = unpack(asked.meters[token] or {'', events[token], ''})
      local meter = meters[token] or open_meter(EMPTY_METER)
      local quantity, value = tonumber(totals[name]), totals[name]
      local is_billed = class ~= '' and math.max(meter[class], meter.late, meter.pending) + quantity <= MOST
      redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 't', value)
      redis.call('HDEL', keys.totals, name)
      totals[name] = nil
      if is_billed then
        if not head then
          head = {seen_ms = now, begins_ms = own.starts_ms, ends_ms = own.finishes_ms, rev = own.rev}
          redis.call('HSET', keys.counters, 'h',
            cmsgpack.pack(FORM, now, head.begins_ms, head.ends_ms, NEVER_MS, head.rev))
        end
        meters[token] = meter
        meter[class], meter.late, meter.pending = meter[class] + quantity, meter.late + quantity, meter.pending + quantity
        redis.call('HSET', keys.counters, token .. 'm', pack_meter(meter))
        if keys.audit then
          local within = class == 'included' and quantity or 0
          enter_usage(keys.audit, own.nonce, #late + 1, own.customer, now, head.begins_ms, period, '',
            {token .. 'm', within, 0, 0, quantity - within, 0, quantity})
        end
      end
      enter(keys.history, {{'late', text('%.0f', now), period .. ' ' .. value .. ' of ' .. meter_name .. price,
        is_billed and 'billed in the period that is open' or 'not billed', 'clock'}})
      late[#late + 1] = {period, token, value, is_billed and 1 or 0}
    end
  end
  return head, late
end
