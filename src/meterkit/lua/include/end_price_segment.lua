-- end_price_segment: ends a price segment of meters: stores the label of the ended price with the units counted so far.
--   by_lines: whether invoice lines bill the period: then pending units count as sealed, because no event takes them
--   totals_key: hash; period: its first instant, as text; meters: see read_counters; meter.since: optional, units that were
--   sealed after the segment's end
--   labels: token to the label of the ended price, as text without blanks and semicolons
-- PERIOD|METERs has an entry for each segment, `LABEL SEALED OVERAGE;`: units since the period began.
-- PERIOD|METERy has the label of the first segment, even if nothing was recorded in it; see price_late_usage.
-- A long entry has one segment for each label, whatever their order was.
--include store_price_labels
--include join_segments
local function end_price_segment(totals_key, period, meters, labels, by_lines)
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
      sealed = sealed + (by_lines and meters[token].pending or 0)
    end
    sealed = math.max(0, sealed - since)
    local marks = counted[6] or ''
    if sealed + overage > 0 or marks ~= '' then
      -- A segment at the price of the one before replaces it.
      local before, last = string.match(marks, '^(.-)([^ ;]+) %d+ %d+;$')
      marks = last == label and before or marks
      marks = string.format('%s%s %.0f %.0f;', marks, label, sealed, overage)
      redis.call('HSET', totals_key, name .. 's', #marks > SEGMENTS_MAX_BYTES and join_segments(marks) or marks)
      redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
    end
  end
end
