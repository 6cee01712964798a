-- close_past_period: closes the period of a customer's counters if it is not the current one, and reads them again.
--   counters_key, totals_key: hashes; head, meters, totals: as read; period_start_ms, period_end_ms: of the current period
--   is_moved: optional, whether another period may end at the same time
-- Returns head, meters and totals, read again if the period was closed.
--include close_period
local function close_past_period(counters_key, totals_key, head, meters, totals, now, period_start_ms, period_end_ms, is_moved)
  local is_another = is_moved and head and period_start_ms >= head.begins_ms + 2 * MINUTE_MS
  if head and head.ends_ms ~= period_end_ms or is_another then
    close_period(counters_key, totals_key, now, period_start_ms, period_end_ms)
    head, meters = read_counters(counters_key)
    totals = {}
    read_numbers(totals_key, totals, {})
  end
  return head, meters, totals
end
