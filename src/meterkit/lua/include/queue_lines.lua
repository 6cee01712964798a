-- queue_lines: queues invoice lines for pending usage of closed periods: one for each meter, period and price at which it
-- was recorded. Usage that costs nothing, as in a trial, has no line: it counts as delivered (d), and as u. Usage without
-- a price counts as never billed (t).
--   keys: totals, history, items; head: as read_counters gives it; totals: as read; own: customer, nonce
--   asked: since: usage of periods that began before (ms) costs nothing; meters: a token to the meter's name, the label of
--   its price now, the token of the meter that has that price; item: what each line needs
-- Returns the head, the list of unpriced usage as the reply has it, and the number of lines.
--include append_history
--include price_late_usage
--include queue_item
local function queue_lines(keys, head, _, totals, _, asked, own, now)
  local text, line_count, unpriced = string.format, 0, {}
  local function queue_line(period, token, name, label, value)
    line_count = line_count + 1
    local item = {by_line = '1', customer = own.customer, period = period, meter = token, name = name, label = label,
      event = name, value = value, till = totals[period .. '|e']}
    for field, known in pairs(asked.item) do
      item[field] = known
    end
    queue_item(keys.items, keys.totals, own.nonce .. '-' .. line_count, item, now)
  end
  for _, field in ipairs(sorted_keys(totals)) do
    local period, token = string.match(field, '^(%d+)|(....)p$')
    local terms, quantity = asked.meters[token], period and tonumber(totals[field]) or 0
    if quantity > 0 and terms then
      local name, label, priced = unpack(terms)
      local units_at = {}
      for _, part in ipairs(price_late_usage(totals, period, token, quantity, label, priced)) do
        units_at[part[1]] = (units_at[part[1]] or 0) + part[2]
      end
      for _, price in ipairs(sorted_keys(units_at)) do
        local units = text('%.0f', units_at[price])
        if tonumber(period) < asked.since then
          redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 'd', units)
          redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 'u', units)
        elseif string.find(price, '^%d+/%d+$') then
          queue_line(period, token, name, price, units)
        else
          redis.call('HINCRBY', keys.totals, period .. '|' .. token .. 't', units)
          append_history(keys.history, {{'late', text('%.0f', now), period .. ' ' .. units .. ' of ' .. name,
            'not billed: it has no price', 'clock'}})
          unpriced[#unpriced + 1] = {period, token, units, NOT_BILLED}
        end
      end
      redis.call('HDEL', keys.totals, field)
      totals[field] = nil
    end
  end
  return head, unpriced, line_count
end
