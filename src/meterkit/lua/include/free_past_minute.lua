-- free_past_minute: finds the timestamp of a cut for a meter: a minute that is over at Stripe, if one is free.
--   totals_key: hash; totals: as read; head: see read_counters, with from_ms; token: of the meter; minute, before: see
--   next_free_minute
-- Returns minute and before, updated.
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
