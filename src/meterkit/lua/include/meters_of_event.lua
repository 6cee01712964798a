-- meters_of_event: ranks a meter among those of its event name. They share minutes; a renamed meter is an example.
--   events: token to event name; meters: see read_counters; token: of the meter
-- Returns the number of these meters, the number of those before this one, and the last minute of any of them (ms).
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
