#!lua flags=no-writes
-- usage: all that is known of a customer, as of one instant.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] hash  grants
-- ARGV  last: the caller's clock (ms)
-- Reply {now, rev, state, counters, totals, grants}; the last three as flat lists of fields and values
--include server_ms
local state = redis.call('HMGET', KEYS[2], 'rev', 'data')
local counters, totals = redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3])
return {server_ms(ARGV[#ARGV]), state[1] or NO_STATE, state[2] or '', counters, totals, redis.call('HGETALL', KEYS[4])}
