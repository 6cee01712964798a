#!lua flags=no-writes
-- read_usage: all that is known of a customer, as of one instant.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals of closed periods and deliveries
-- KEYS[4] hash  grants      KEYS[5] hash  levels of gauges    KEYS[6] hash  optional: the ledger of grants
-- ARGV  optional: 1 rev of the caller's view of the customer
--                 2 what grants come to by the plan of that (JSON), see grant_balance
--                 3 to 5 start and end of its period, and the end of the next one (ms)
--       last: the caller's clock (ms)
-- Reply {now, rev, state, counters, totals, levels, funds, ledger}; three flat lists of fields and values, then what
--   read_funds returns (empty without terms, or where the rev is another one), and the ledger as a flat list
--include server_ms
local counters_key, state_key, totals_key, grants_key, levels_key, ledger_key = unpack(KEYS)
local rev, terms, start_ms, end_ms, next_end_ms = unpack(ARGV, 1, #ARGV - 1)
local now, state, funds = server_ms(ARGV[#ARGV]), redis.call('HMGET', state_key, 'rev', 'data'), {}
if rev and rev == (state[1] or NO_STATE) then
--include read_funds
  funds = read_funds(grants_key, cjson.decode(terms), start_ms + 0, end_ms + 0, next_end_ms + 0, now)
end
local counters, totals = redis.call('HGETALL', counters_key), redis.call('HGETALL', totals_key)
local levels = redis.call('HGETALL', levels_key)
local ledger = ledger_key and redis.call('HGETALL', ledger_key) or {}
return {now, state[1] or NO_STATE, state[2] or '', counters, totals, levels, funds, ledger}
