-- recount_intent: counts an intent in its customer's totals in another state than before.
--   totals_key: hash; from, to: states, see count_field
-- Returns false if the totals are invalid: nothing is done.
--include count_field
local function recount_intent(totals_key, intent, from, to)
  local before, value = count_field(intent, from)
  local after = count_field(intent, to)
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
