-- free_minute: the first minute that an intent of a meter can have in the counters' period; behind the second it cannot.
--   head, meters: as read_counters gives them; events: token to event name; taken: minutes that it may not have (ms); token
--include sharing
local function free_minute(head, meters, events, taken, token, now)
  local count, _, stamped_ms = sharing(events, meters, token)
  local first = math.ceil(head.begins_ms / MINUTE_MS) * MINUTE_MS
  local last = (math.floor(head.ends_ms / MINUTE_MS) - 1 - count) * MINUTE_MS
  local minute = math.max(first, math.floor(now / MINUTE_MS) * MINUTE_MS, stamped_ms + MINUTE_MS)
  while taken[minute] do
    minute = minute + MINUTE_MS
  end
  return minute, last
end
