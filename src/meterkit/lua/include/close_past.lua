-- close_past: closes the period of a customer's counters where it is another one than that of now, and reads again.
--   counters_key, totals_key: hashes; head, meters, totals: as they were read; now; starts_ms, finishes_ms: of the
--   period of now (ms)
-- Returns head, meters and totals as they are then.
--include close_period
local function close_past(counters_key, totals_key, head, meters, totals, now, starts_ms, finishes_ms)
  if head and head.ends_ms ~= finishes_ms then
    close_period(counters_key, totals_key, now, starts_ms, finishes_ms)
    head, meters = read_counters(counters_key)
    totals = {}
    whole_numbers(totals_key, totals, {})
  end
  return head, meters, totals
end
