-- free_past_minute: the minute that a cut stamps a meter with: one that is over at Stripe already, where one is free.
--   totals_key: hash; totals: as it was read; head: as read_counters gives it, with from_ms; token: of the meter
--   minute, before: as next_free_minute gives them
-- Returns both as they are then.
local function free_past_minute(totals_key, totals, head, token, minute, before, now)
  if minute <= now - SKEW_MS then
    return minute, before
  elseif before then
    return before, nil
  end
  local name = string.format('%.0f|%sv', head.begins_ms, token)
  local vacant = tonumber(totals[name] or '0')
  if vacant < math.max(head.begins_ms, head.from_ms) then
    return minute, nil
  end
  redis.call('HDEL', totals_key, name)
  return vacant, nil
end
