-- queue_notice: keeps for the handlers of the app what a process has found: the last thousand or so of a shard, until nothing
-- has happened in it for a week.
--   key: stream; kind: of the event; data: what it says (JSON)
local function queue_notice(key, customer, kind, data)
  redis.call('XADD', key, 'MAXLEN', '~', NOTICES_MOST, '*', 'kind', kind, 'customer', customer, 'of', '',
    'numbers', '', 'data', data)
  redis.call('PEXPIRE', key, SEVEN_DAYS_MS)
end
