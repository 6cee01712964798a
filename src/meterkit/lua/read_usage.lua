#!lua flags=no-writes
-- read_usage: all that is known of a customer, as of one instant.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] hash  grants      KEYS[5] hash  levels of gauges
-- ARGV  last: the caller's clock (ms)
-- Reply {now, rev, state, counters, totals, grants, levels}; the last four as flat lists of fields and values
--include server_ms
local counters_key, state_key, totals_key, grants_key, levels_key = unpack(KEYS)
local caller_ms = ARGV[#ARGV]
local state = redis.call('HMGET', state_key, 'rev', 'data')
local counters, totals = redis.call('HGETALL', counters_key), redis.call('HGETALL', totals_key)
local grants, levels = redis.call('HGETALL', grants_key), redis.call('HGETALL', levels_key)
return {server_ms(caller_ms), state[1] or NO_STATE, state[2] or '', counters, totals, grants, levels}
