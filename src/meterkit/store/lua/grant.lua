#!lua
-- grant: adds grants of the app's, each once.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  a grant each: its name, target, quantity (units, or micro-credits), priority, when it becomes effective
--       (ms; 0: now), when it expires (ms; 9000000000000000: never)
--       last: the caller's clock (ms)
-- Reply {0, now}   {1, name, quantity on file}: the name was used for another quantity; nothing was added
--       {2, name}: the balance would pass 9 * 10^15; nothing was added
--include wall
local call, now = redis.call, wall_ms()
local left, live = {}, call('HVALS', KEYS[1])
for _, value in ipairs(live) do
  local target, quantity, used = string.match(value, '^(%S+) (%d+) (%d+) ')
  left[target] = (left[target] or 0) + (quantity - used)
end
local new = {}
for i = 1, #ARGV - 1, 6 do
  local name, target, quantity, priority, effective, expires = unpack(ARGV, i, i + 5)
  local known = call('HGET', KEYS[2], 'grant ' .. name)
  if known and string.match(known, '^%d+') ~= quantity then
    return {1, name, string.match(known, '^%d+')}
  elseif not known then
    left[target] = (left[target] or 0) + quantity
    if left[target] > 9000000000000000 then
      return {2, name}
    end
    effective = effective == '0' and string.format('%.0f', now) or effective
    local terms = priority .. ' ' .. effective .. ' ' .. expires .. ' ' .. string.format('%.0f', now)
    new[#new + 1] = {name, target .. ' ' .. quantity .. ' 0 ' .. terms .. ' 0', quantity .. ' ' .. terms}
  end
end
for _, grant in ipairs(new) do
  call('HSET', KEYS[1], grant[1], grant[2])
  call('HSET', KEYS[2], 'grant ' .. grant[1], grant[3])
end
call('PERSIST', KEYS[1])
call('PERSIST', KEYS[2])
return {0, now}
