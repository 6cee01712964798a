#!lua
-- add_grant: adds a grant with one or more targets, once per id.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  1 the grant's id   2 the most grants that the app may add   3 priority
--       4 when it becomes effective (ms; 0: now)   5 when it expires (ms; 9000000000000000: never)
--       then its targets, sorted, each followed by its quantity (units, or micro-credits)
--       last: the caller's clock (ms)
-- Reply {OK, now}
--       {ID_USED, what the id was used for: targets and quantities}: nothing is added
--       {BALANCE_TOO_LARGE, target}: it would pass 9 * 10^15; nothing is added
--       {TOO_MANY, how many grants there are}: nothing is added
--include server_ms
--include repay_debts
--include archive_grant
local grants_key, ledger_key = KEYS[1], KEYS[2]
local id, most, priority, effective_ms, expires_ms = unpack(ARGV, 1, 5)
local first_target = 6 -- Among the arguments: each target, and its quantity.
local call, now = redis.call, server_ms(ARGV[#ARGV])
local line, asked = 'id ' .. id, table.concat(ARGV, ' ', first_target, #ARGV - 1)
local known = call('HGET', ledger_key, line)
if known then
  return known == asked and {OK, now} or {ID_USED, known}
end
local file, left, live = repay_debts(grants_key, ledger_key, now), {}, 0
for _, grant in ipairs(file.list) do
  left[grant.target] = (left[grant.target] or 0) + (grant.quantity - grant.used)
  if string.sub(grant.name, 1, 1) == 'a' then
    live = live + 1
  end
end
for target, debt in pairs(file.debts) do
  left[target] = (left[target] or 0) - debt.owed
end
for i = first_target, #ARGV - 1, 2 do
  if (left[ARGV[i]] or 0) + ARGV[i + 1] > MOST then
    return {BALANCE_TOO_LARGE, ARGV[i]}
  end
end
if live + (#ARGV - first_target) / 2 > most + 0 then
  return {TOO_MANY, live}
end
for _, grant in ipairs(file.ended) do
  if string.sub(grant.name, 1, 1) == 'a' then -- What a plan gave may live on.
    archive_grant(grants_key, ledger_key, file.past, grant, grant.until_ms - 1)
  end
end
local created = string.format('%.0f', now)
local effective = effective_ms == '0' and created or effective_ms
for i = first_target, #ARGV - 1, 2 do
  local target, quantity = ARGV[i], ARGV[i + 1]
  local name = 'a ' .. target .. ' ' .. id
  local terms = table.concat({priority, effective, expires_ms, created}, ' ')
  call('HSET', grants_key, name, table.concat({target, quantity, 0, terms, expires_ms}, ' '))
  call('HSET', ledger_key, 'grant ' .. name, quantity .. ' ' .. terms)
end
call('HSET', ledger_key, line, asked)
call('HDEL', grants_key, 'balance')
call('PERSIST', grants_key)
call('PERSIST', ledger_key)
return {OK, now}
