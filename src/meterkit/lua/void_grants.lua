#!lua
-- void_grants: voids grants that the app has added, used-up ones too, to which a correction may return units. Usage and debts
-- that they have paid stay paid. A grant that is void already, or has left the list because it expired, stays as it is.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  the names of the grants    last: the caller's clock (ms)
-- Reply  the number of voided grants
--include server_ms
--include repay_debts
--include read_payer
local grants_key, ledger_key, caller_ms = KEYS[1], KEYS[2], ARGV[#ARGV]
local call, found, now = redis.call, 0, server_ms(caller_ms)
repay_debts(grants_key, ledger_key, now)
for i = 1, #ARGV - 1 do
  local name = ARGV[i]
  local value = call('HGET', grants_key, name)
  local grant = value and parse_grant(name, value) or read_payer(grants_key, ledger_key, name, now)
  if grant then
    call('HDEL', grants_key, name)
    call('HSET', ledger_key, 'void ' .. name, string.format('%.0f %.0f', grant.quantity - grant.used, now))
    found = found + 1
  end
end
if found > 0 then
  call('HDEL', grants_key, 'balance')
end
return found
