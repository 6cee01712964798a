-- next_free_minute: the first minute that an intent of a meter can have in the counters' period; behind the second it cannot.
--   head, meters: as read_counters gives them; head.from_ms: optional, no minute before it
--   events: token to event name; taken: minutes that it may not have (ms); token
-- Returns the minute, the last one of the period, and the minute before the first one where that is free, too; else nil.
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
