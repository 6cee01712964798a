-- expire_unlinked: ends the wait of usage for a link, of periods that ended longer ago than it is kept: Stripe would refuse
-- its timestamp. It counts as late, and nothing bills it. Nothing is done where the totals are damaged.
--   totals_key: hash; history_key: list; names: token to the name of its meter
-- Returns `PERIOD UNITS of METER` for each.
--include append_history
--include read_numbers
--include sorted_keys
local function expire_unlinked(totals_key, history_key, names, now)
  local totals, expired = {}, {}
  if read_numbers(totals_key, totals, {'|e$', '|....[pt]$'}) then
    return expired
  end
  for _, field in ipairs(sorted_keys(totals)) do
    local period, token = string.match(field, '^(%d+)|(....)p$')
    local ends, value = period and totals[period .. '|e'], totals[field]
    if ends and value ~= '0' and ends + UNLINKED_KEPT_MS <= now then
      redis.call('HINCRBY', totals_key, period .. '|' .. token .. 't', value)
      redis.call('HDEL', totals_key, field)
      expired[#expired + 1] = period .. ' ' .. value .. ' of ' .. (names[token] or token)
      append_history(history_key, {{'late', string.format('%.0f', now), expired[#expired],
        'not billed: no link came within 35 days of its period', 'clock'}})
    end
  end
  return expired
end
