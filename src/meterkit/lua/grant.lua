#!lua
-- grant: adds a grant of the app's, of one target or more, once.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  1 the app's id of it   2 how many of the app's grants there may be   3 priority
--       4 when it becomes effective (ms; 0: now)   5 when it expires (ms; 9000000000000000: never)
--       then its targets, sorted, each followed by its quantity (units, or micro-credits)
--       last: the caller's clock (ms)
-- Reply {0, now}   {1, what the id was used for: targets and quantities}   {2, target}: the balance would pass
--       9 * 10^15   {3, how many there are}: it would be too many; but for the first, nothing was added
--include server_ms
--include grants
--include put_away
local call, now = redis.call, server_ms(ARGV[#ARGV])
local line, asked = 'id ' .. ARGV[1], table.concat(ARGV, ' ', 6, #ARGV - 1)
local known = call('HGET', KEYS[2], line)
if known then
  return known == asked and {0, now} or {1, known}
end
local file, left, live = grants(KEYS[1], now), {}, 0
for _, grant in ipairs(file.list) do
  left[grant.target] = (left[grant.target] or 0) + (grant.quantity - grant.used)
  if string.sub(grant.name, 1, 1) == 'a' then
    live = live + 1
  end
end
for i = 6, #ARGV - 1, 2 do
  if (left[ARGV[i]] or 0) + ARGV[i + 1] > MOST then
    return {2, ARGV[i]}
  end
end
if live + (#ARGV - 6) / 2 > ARGV[2] + 0 then
  return {3, live}
end
for _, grant in ipairs(file.ended) do
  put_away(KEYS[1], KEYS[2], file.past, grant, grant.until_ms - 1)
end
local created = string.format('%.0f', now)
local effective = ARGV[4] == '0' and created or ARGV[4]
for i = 6, #ARGV - 1, 2 do
  local name, quantity = 'a ' .. ARGV[i] .. ' ' .. ARGV[1], ARGV[i + 1]
  local terms = table.concat({ARGV[3], effective, ARGV[5], created}, ' ')
  call('HSET', KEYS[1], name, table.concat({ARGV[i], quantity, 0, terms, ARGV[5]}, ' '))
  call('HSET', KEYS[2], 'grant ' .. name, quantity .. ' ' .. terms)
end
call('HSET', KEYS[2], line, asked)
call('HDEL', KEYS[1], 'balance')
call('PERSIST', KEYS[1])
call('PERSIST', KEYS[2])
return {0, now}
