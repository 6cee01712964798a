-- queue_notices: queues notices about a customer for the app's handlers. A shard's stream keeps about the last thousand; it
-- expires a week after the last one.
--   key: stream; notices: {kind, its credit or meter, number...} each; period_start_ms, period_end_ms: of the period of now
-- Returns 'notice' if there is one, otherwise nil.
local function queue_notices(key, customer, notices, now, period_start_ms, period_end_ms)
  for _, notice in ipairs(notices) do
    local numbers = {}
    for place, number in ipairs({now, period_start_ms, period_end_ms, unpack(notice, 3)}) do
      numbers[place] = string.format('%.0f', number)
    end
    redis.call('XADD', key, 'MAXLEN', '~', NOTICES_MOST, '*', 'kind', notice[1], 'customer', customer,
      'of', notice[2], 'numbers', table.concat(numbers, ' '))
    redis.call('PEXPIRE', key, SEVEN_DAYS_MS)
  end
  return notices[1] and 'notice'
end
