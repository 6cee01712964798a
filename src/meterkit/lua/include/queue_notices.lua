-- queue_notices: keeps what has happened to a customer for the handlers of the app: the last thousand or so of a shard, until
-- nothing has happened in it for a week.
--   key: stream; notices: {kind, its credit or meter, number...} each; period_start_ms, period_end_ms: of the period of now
-- Returns 'notice' where there is one, else nil.
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
