-- meters_of_event: the meters of an event name, such as one and its name of before, share its minutes.
--   events: token to event name; meters: as read_counters gives them; token: one of them
-- Returns how many there are, how many stand before this one, and the last minute that one of them has (ms).
local function meters_of_event(events, meters, token)
  local count, before, stamped_ms = 0, 0, 0
  for other, event in pairs(events) do
    if event == events[token] then
      count, before = count + 1, before + (other < token and 1 or 0)
      stamped_ms = math.max(stamped_ms, meters[other] and meters[other].stamped_ms or 0)
    end
  end
  return count, before, stamped_ms
end
