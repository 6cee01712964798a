#!lua flags=no-writes
-- usage: all that is known of a customer, as of one instant.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- ARGV  last: the caller's clock (ms)
-- Reply {now, rev, state, counters, totals}; the last two as flat lists of fields and values
--include wall
local state = redis.call('HMGET', KEYS[2], 'rev', 'data')
local counters = redis.call('HGETALL', KEYS[1])
return {wall_ms(), state[1] or '1:0', state[2] or '', counters, redis.call('HGETALL', KEYS[3])}
