-- recount: counts an intent in its customer's totals as in another state than before.
--   totals_key: hash; from, to: states, see count_of
-- Returns whether that could be done; where not, nothing is done.
--include count_of
local function recount(totals_key, intent, from, to)
  local before, value = count_of(intent, from)
  local after = count_of(intent, to)
  local counted = redis.pcall('HMGET', totals_key, before, after)
  for i = 1, 2 do
    if counted.err or counted[i] and not string.find(counted[i], '^%-?%d+$') then
      return false
    end
  end
  redis.call('HINCRBY', totals_key, before, '-' .. value)
  redis.call('HINCRBY', totals_key, after, value)
  redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
  return true
end
