-- queue_notice: queues a notice for the app's handlers. A shard's stream keeps about the last thousand notices, and expires a
-- week after the last one.
--   key: stream; kind: of the event; data: JSON
local function queue_notice(key, customer, kind, data)
  redis.call('XADD', key, 'MAXLEN', '~', NOTICES_MOST, '*', 'kind', kind, 'customer', customer, 'of', '',
    'numbers', '', 'data', data)
  redis.call('PEXPIRE', key, SEVEN_DAYS_MS)
end
