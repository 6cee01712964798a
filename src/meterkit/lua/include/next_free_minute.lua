-- next_free_minute: finds the first minute that an intent of a meter can have in the counters' period.
--   head, meters: see read_counters; head.from_ms: optional, the earliest minute; events: token to event name; taken: minutes
--   that it may not have (ms); token: of the meter
-- Returns that minute, the last minute allowed in the period, and the minute before the first if it is free, too; else nil.
-- If the first minute is after the last, no minute is free.
--include meters_of_event
local function next_free_minute(head, meters, events, taken, token, now)
  local count, _, stamped_ms = meters_of_event(events, meters, token)
  local first = math.ceil(math.max(head.begins_ms, head.from_ms or 0) / MINUTE_MS) * MINUTE_MS
  local last = (math.floor(head.ends_ms / MINUTE_MS) - 1 - count) * MINUTE_MS
  local minute = math.max(first, math.floor((now - SKEW_MS) / MINUTE_MS) * MINUTE_MS, stamped_ms + MINUTE_MS)
  while taken[minute] do
    minute = minute + MINUTE_MS
  end
  local before = minute - MINUTE_MS
  local is_free = before >= first and before > stamped_ms and not taken[before]
  return minute, last, is_free and before or nil
end
