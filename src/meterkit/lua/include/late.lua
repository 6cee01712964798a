-- overdue: of which closed period (its first instant, as text) usage is that occurred at `at` (ms), or nil where it is
-- of the counters' period, which began at `began`.
--   own: first instant of the period that it lay in, by the caller, where the totals know none
local function overdue(at, own, began)
  if at >= began then
    return nil
  end
  local totals = redis.call('HGETALL', KEYS[3])
  for i = 1, #totals, 2 do
    local period = string.match(totals[i], '^(%d+)|e$')
    if period and period + 0 <= at and at < totals[i + 1] + 0 then
      return period
    end
  end
  return string.format('%.0f', own)
end
-- keep_late: counts units that came late: as u of their own period and, where they are recorded in this one, as m of it.
--   units: the token of a meter to its quantity
local function keep_late(period, units, recorded)
  for token, quantity in pairs(units) do
    redis.call('HINCRBY', KEYS[3], period .. '|' .. token .. 'u', string.format('%.0f', quantity))
    if recorded then
      redis.call('HINCRBY', KEYS[1], token .. 'm', string.format('%.0f', quantity))
    end
  end
  redis.call('PEXPIRE', KEYS[3], 34560000000)
end
