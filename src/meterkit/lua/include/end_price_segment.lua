-- end_price_segment: ends a price segment: until now each meter of labels had the price that its label names.
--   totals_key: hash; period: its first instant, as text; meters: as read_counters gives them; since: of a meter, what
--   was sealed after the segment's end
--   labels: token to the label of its price, as text without blanks and semicolons
-- PERIOD|METERs has a line for each segment: label, units sealed and overage recorded since the period began, `;`.
-- PERIOD|METERy has the label of the first one, also where nothing was recorded in it; see price_late_usage.
--include store_price_labels
local function end_price_segment(totals_key, period, meters, labels)
  store_price_labels(totals_key, period, labels)
  for token, label in pairs(labels) do
    local name, sealed = period .. '|' .. token, 0
    local counted = redis.call('HMGET', totals_key, name .. 'q', name .. 'l', name .. 'k', name .. 'd', name .. 'x',
      name .. 's')
    for i = 1, 5 do
      sealed = sealed + (counted[i] or 0)
    end
    local overage, since = 0, 0
    if meters[token] then
      overage, since = meters[token].overage, meters[token].since or 0
    end
    sealed = math.max(0, sealed - since)
    local marks = counted[6] or ''
    if sealed + overage > 0 or marks ~= '' then
      -- The same price again: one segment.
      local before, last = string.match(marks, '^(.-)([^ ;]+) %d+ %d+;$')
      marks = last == label and before or marks
      redis.call('HSET', totals_key, name .. 's', string.format('%s%s %.0f %.0f;', marks, label, sealed, overage))
      redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
    end
  end
end
