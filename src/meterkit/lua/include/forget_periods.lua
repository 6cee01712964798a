-- forget_periods: forgets closed periods that ended 400 days ago, except those with usage still to be
-- delivered, or never will be.
--   totals_key: hash, see close_period; a period with only late usage known has no end there: it counts as
--   over at once
local function forget_periods(totals_key, now)
  local list, ends, open, gone = redis.call('HGETALL', totals_key), {}, {}, {}
  for i = 1, #list, 2 do
    local period, kind = string.match(list[i], '^(%d+)|.-(.)$')
    if kind == 'e' then
      ends[period] = list[i + 1] + 0
    elseif string.find('apqlkxQLKX', kind, 1, true) and list[i + 1] ~= '0' then
      open[period] = true
    end
  end
  for i = 1, #list, 2 do
    local period = string.match(list[i], '^%d+')
    if not open[period] and (ends[period] or period + 0) + FOUR_HUNDRED_DAYS_MS <= now then
      gone[#gone + 1] = list[i]
    end
  end
  if #gone > 0 then
    redis.call('HDEL', totals_key, unpack(gone))
  end
end
