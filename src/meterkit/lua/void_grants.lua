#!lua
-- void_grants: voids grants that the app has added. Usage and debts that they have paid stay paid.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  the names of the grants    last: the caller's clock (ms)
-- Reply  the number of voided grants
--include server_ms
--include repay_debts
local grants_key, ledger_key, caller_ms = KEYS[1], KEYS[2], ARGV[#ARGV]
local call, found, now = redis.call, 0, server_ms(caller_ms)
repay_debts(grants_key, ledger_key, now)
for i = 1, #ARGV - 1 do
  local name = ARGV[i]
  local value = call('HGET', grants_key, name)
  if value then
    local quantity, used = string.match(value, '^%S+ (%d+) (%d+) ')
    call('HDEL', grants_key, name)
    call('HSET', ledger_key, 'void ' .. name, string.format('%.0f %.0f', quantity - used, now))
    found = found + 1
  end
end
if found > 0 then
  call('HDEL', grants_key, 'balance')
end
return found
