-- queue_lines: queues invoice lines for pending usage of closed periods that lines bill: one for each meter, period and
-- price at which it was recorded. Usage that costs nothing, as in a trial, has no line: it counts as delivered (d), and
-- as w. Usage without a price counts as never billed (t).
--   keys: totals, history, items; head: as read_counters gives it; totals: as read; own: customer, nonce; and wait_until
--   and wait_for_name, see seal
--   asked: switches: see is_by_lines; item: what each line needs; most: see sum_lines_by_meter
--          periods: by its first instant: the subscription that bills it (empty: none), free: whether it costs nothing,
--          meters: a token to the meter's name and the label of its price at the end of the period (empty: not known; then
--          usage waits, unless ended prices cover it)
-- Returns the head, the list of unpriced usage as the reply has it, and the number of lines.
--include append_history
--include is_by_lines
--include price_late_usage
--include queue_item
--include sum_lines_by_meter
local function queue_lines(keys, head, _, totals, _, asked, own, now)
  local text, lines, unpriced = string.format, {}, {}
  local function add_line(period, token, name, label, value)
    lines[#lines + 1] = {by_line = '1', customer = own.customer, period = period, meter = token, name = name, label = label,
      event = name, value = value, till = totals[period .. '|e'] or period, subscription = asked.periods[period].subscription}
  end
  local function bill_units(period, token, name, price, units)
    if asked.periods[period].free or price == FREE_LABEL then
      redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 'd', units)
      redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 'w', units)
    elseif string.find(price, '^%d+/%d+$') then
      add_line(period, token, name, price, units)
    else
      redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 't', units)
      append_history(keys.history, {{'late', text('%.0f', now), period .. ' ' .. units .. ' of ' .. name,
        'not billed: it has no price', 'clock'}})
      unpriced[#unpriced + 1] = {period, token, units, WITHOUT_PRICE}
    end
  end
  for _, field in ipairs(sorted_keys(totals)) do
    local period, token = string.match(field, '^(%d+)|(....)p$')
    local quantity = period and is_by_lines(asked.switches, period) and tonumber(totals[field]) or 0
    local known = asked.periods[period]
    local terms = known and known.meters[token]
    if quantity > 0 and not known then
      own.wait_until(now + MINUTE_MS) -- It was closed just now.
      totals[field] = nil
    elseif quantity > 0 then
      local name, label = unpack(terms or {'', ''})
      local units_at, is_known = {}, terms
      for _, part in ipairs(price_late_usage(totals, period, token, quantity, label, token, true)) do
        units_at[part[1]] = (units_at[part[1]] or 0) + part[2]
        is_known = is_known and (known.free or part[1] ~= '')
      end
      if is_known then
        for _, price in ipairs(sorted_keys(units_at)) do
          bill_units(period, token, name, price, text('%.0f', units_at[price]))
        end
        redis.call('HDEL', keys.totals, field)
        redis.call('PEXPIRE', keys.totals, FOUR_HUNDRED_DAYS_MS)
      else
        own.wait_for_name(token, quantity)
      end
      totals[field] = nil
    end
  end
  lines = sum_lines_by_meter(lines, asked.most)
  for i, item in ipairs(lines) do
    for known, value in pairs(asked.item) do
      item[known] = value
    end
    queue_item(keys.items, keys.totals, own.nonce .. '-' .. i, item, now)
  end
  return head, unpriced, #lines
end
