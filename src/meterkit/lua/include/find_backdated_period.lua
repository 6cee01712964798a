-- find_backdated_period: finds the closed period that backdated usage belongs to, by the instant at which the usage occurred.
-- Returns the first instant of that period, as text; nil if the usage belongs to the counters' period.
--   totals_key: hash; begins_ms: when the counters' period began; own_start_ms: the first instant of the period that
--   it lay in, by the caller, where the totals know none
local function find_backdated_period(totals_key, occurred_ms, own_start_ms, begins_ms)
  if occurred_ms >= begins_ms then
    return nil
  end
  local totals = redis.call('HGETALL', totals_key)
  for i = 1, #totals, 2 do
    local period = string.match(totals[i], '^(%d+)|e$')
    if period and period + 0 <= occurred_ms and occurred_ms < totals[i + 1] + 0 then
      return period
    end
  end
  return string.format('%.0f', own_start_ms)
end
