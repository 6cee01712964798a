#!lua
-- forget_customer: deletes a customer's state, counters, levels, totals and grants, unless usage is undelivered, parked or
-- dead. The caller erases the ledger of changes and the digests last: they say what else there is to erase, also to a
-- repeat.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] hash  totals    KEYS[4] set  customers with state
-- KEYS[5] zset  dirty       KEYS[6] zset  unlinked    KEYS[7] hash  grants    KEYS[8] hash  their ledger
-- KEYS[9] hash  levels of gauges    KEYS[10] zset  idempotency keys    KEYS[11] list  ledger of changes
-- KEYS[12] zset  turns              KEYS[13] set  digests of the ids of its corrections
-- KEYS[14] hash  objects            KEYS[15] zset  gauges above what is included
-- KEYS[16] stream, KEYS[17] hash  optional: of the audit log, and its sums (see fold_audit)
-- ARGV  1 the rev that was read   2 the customer   last: the caller's clock (ms)
-- Reply {OK, the number of entries in: counters, state, totals, grants, their ledger, levels, idempotency keys, ledger of
--       changes; the digests: each ends the name of a key that remembers a correction}
--       {CHANGED}                the state has changed since it was read: nothing is done
--       {UNDELIVERED}            usage is not delivered yet: nothing is done
--       {PARKED}                 usage is parked or dead: nothing is done
--include server_ms
local counters_key, state_key, totals_key, customers_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dirty_key, unlinked_key, grants_key, ledger_key, levels_key, marks_key = unpack(KEYS, 5, 10)
local history_key, turns_key, corrections_key, objects_key, over_key, audit_key, sums_key = unpack(KEYS, 11)
local rev, customer = ARGV[1], ARGV[2]
local call = redis.call
if (call('HGET', state_key, 'rev') or NO_STATE) ~= rev then
  return {CHANGED}
elseif call('ZSCORE', dirty_key, customer) then
  return {UNDELIVERED}
end
local totals = call('HGETALL', totals_key)
local undelivered = false
for i = 1, #totals, 2 do
  if totals[i + 1] ~= '0' then
    if string.find(totals[i], '|....[aqlQL]$') then
      return {UNDELIVERED}
    end
    undelivered = undelivered or string.find(totals[i], '|....[kxKX]$')
  end
end
if undelivered then
  return {PARKED}
end
local gauges = call('HKEYS', levels_key)
local reply = {0, #call('HKEYS', counters_key), call('EXISTS', state_key), #totals / 2, #call('HKEYS', grants_key),
  #call('HKEYS', ledger_key), #gauges, call('ZCOUNT', marks_key, '-inf', '+inf'),
  call('LLEN', history_key), call('SMEMBERS', corrections_key)}
call('DEL', counters_key, state_key, totals_key, grants_key, ledger_key, levels_key, marks_key, objects_key)
call('SREM', customers_key, customer)
call('ZREM', unlinked_key, customer)
call('ZREM', turns_key, customer)
for _, gauge in ipairs(gauges) do
  call('ZREM', over_key, gauge .. ':' .. customer)
end
if audit_key then
  local at, sums = string.format('%.0f', server_ms(ARGV[#ARGV])), call('HGETALL', sums_key)
  for i = 1, #sums, 2 do -- Appended later, they would be usage since the deletion.
    if string.match(sums[i], '^%d+|[^|]*|(.*)$') == customer then
      call('XADD', audit_key, '*', 'k', 'summed', 'd', sums[i], 'q', sums[i + 1], 'at', at)
      call('HDEL', sums_key, sums[i])
    end
  end
  call('XADD', audit_key, '*', 'k', 'deleted', 'd', customer, 'at', at)
end
return reply
