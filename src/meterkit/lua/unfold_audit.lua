#!lua
-- unfold_audit: appends the sums of fold_audit to the audit stream when it has room again.
--
-- KEYS[1] stream  of the audit log    KEYS[2] hash  sums: PERIOD|METER CLASS|CUSTOMER to units (see audit_usage)
-- ARGV  last: the caller's clock (ms)
-- Reply the number of appended entries
--include server_ms
local stream, sums = KEYS[1], KEYS[2]
local call, fields, now = redis.call, redis.call('HGETALL', sums), string.format('%.0f', server_ms(ARGV[#ARGV]))
for i = 1, #fields, 2 do
  call('XADD', stream, '*', 'k', 'summed', 'd', fields[i], 'q', fields[i + 1], 'at', now)
end
call('DEL', sums)
return #fields / 2
