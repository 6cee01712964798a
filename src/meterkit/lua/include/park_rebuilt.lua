-- park_rebuilt: makes parked intents of a meter's missing units, first of those that may have had a price that has ended. Each
-- has a minute later than any timestamp of lost usage.
--   made: the intents, in turn; wanted: see rebuild_counters; head: see next_free_minute; meters: see read_counters
--   taken: see next_free_minute; share: of the event name, see rebuild_counters; own: common fields; parked: units
-- Returns whether the period has all these minutes.
--include next_free_minute
local function park_rebuilt(made, wanted, head, meters, taken, share, own, parked, now)
  local parts, is_in_period = wanted.meters[own.meter].missed, true
  local since_ms = math.ceil(head.begins_ms / MINUTE_MS) * MINUTE_MS
  parts[#parts + 1] = {parked, {}}
  for _, part in ipairs(parts) do
    local value = math.min(parked, part[1])
    if value > 0 then
      local minute, last = next_free_minute(head, meters, wanted.events, taken, own.meter, now + 4 * MINUTE_MS)
      meters[own.meter].stamped_ms = minute
      share.till_ms, share.parked = share.till_ms or minute, share.parked + value
      local intent = {
        v = '1', state = 'parked', stripe = wanted.stripe, value = string.format('%.0f', value),
        time = string.format('%.0f', minute / 1000), first = string.format('%.0f', now - REBUILT_AGE_MS), attempts = '1',
        key = wanted.id .. '-' .. #made + 1, at = string.format('%.0f', now), since = string.format('%.0f', since_ms / 1000),
        why = 'rebuilt from the audit log: Stripe may have it',
      }
      for _, fields in ipairs({own, part[2]}) do
        for name, known in pairs(fields) do
          intent[name] = known
        end
      end
      made[#made + 1], parked, is_in_period = intent, parked - value, minute <= last
    end
  end
  return is_in_period
end
