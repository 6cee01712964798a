#!lua
-- void: takes grants of the app's back; what they have paid stays paid.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  the names of the grants    last: the caller's clock (ms)
-- Reply  how many were there
--include server_ms
local call, found = redis.call, 0
for i = 1, #ARGV - 1 do
  local value = call('HGET', KEYS[1], ARGV[i])
  if value then
    local quantity, used = string.match(value, '^%S+ (%d+) (%d+) ')
    call('HDEL', KEYS[1], ARGV[i])
    call('HSET', KEYS[2], 'void ' .. ARGV[i], string.format('%.0f %.0f', quantity - used, server_ms(ARGV[#ARGV])))
    found = found + 1
  end
end
if found > 0 then
  call('HDEL', KEYS[1], 'balance')
end
return found
