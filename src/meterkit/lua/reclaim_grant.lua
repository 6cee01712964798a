#!lua
-- reclaim_grant: reclaims from a grant the units whose payment was refunded. Units already spent stay spent: what a
-- correction returns of them is reclaimed then, see return_payment; or they are owed, where the payment is disputed.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  1 the grant's name    2 total refunded so far, this refund included (units, or micro-credits)
--       3 1: automatic top-ups stop until the next purchase, see move_auto_top_up.lua; 0: they go on
--       4 1: units already spent are owed   last: the caller's clock (ms)
-- Field "unreported NAME": what was refunded and taken since the last event that reported it; deleted once that is sent
-- Reply {units refunded and not reported yet, units of those that the grant still had, or that are owed}
--include server_ms
--include repay_debts
local grants_key, ledger_key, name, refunded, stops_auto, owes = KEYS[1], KEYS[2], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4] == '1'
local call, line = redis.call, 'refund ' .. name
local known, taken, owed = string.match(call('HGET', ledger_key, line) or '0 0 0 0', '^(%d+) (%d+) %d+ (%d+)')
local unreported = 'unreported ' .. name
local more_before, part_before = string.match(call('HGET', ledger_key, unreported) or '0 0', '^(%d+) (%d+)$')
local more = refunded - known
if more <= 0 then
  return {tonumber(more_before), tonumber(part_before)}
end
local now = server_ms(ARGV[#ARGV])
repay_debts(grants_key, ledger_key, now)
local value, part = call('HGET', grants_key, name), 0
if value then
  local target, quantity, used, terms = string.match(value, '^(%S+) (%d+) (%d+) (.+)$')
  part = math.min(more, quantity - used)
  if part == quantity - used then
    call('HDEL', grants_key, name)
  else
    call('HSET', grants_key, name, string.format('%s %.0f %s %s', target, quantity - part, used, terms))
  end
end
taken = taken + part
if owes and part < more then
  local target = string.match(name, '^a (%S+)')
  local debt = parse_debt(call('HGET', grants_key, 'd ' .. target))
  debt.owed, debt.since, debt.changed, owed = debt.owed + more - part, now, true, owed + more - part
  write_debt(grants_key, target, debt)
  call('PERSIST', grants_key)
  part = more
end
call('HSET', ledger_key, line, string.format('%.0f %.0f %.0f %.0f', refunded, taken, now, owed))
call('HDEL', grants_key, 'balance')
local auto = 'auto ' .. string.match(name, '^a (%S+)')
local state, rest = string.match(call('HGET', ledger_key, auto) or '', '^(%l+) (.*)$')
if stops_auto == '1' and (state == 'paid' or state == 'pending') then
  call('HSET', ledger_key, auto, 'stopped ' .. rest)
end
more, part = more_before + more, part_before + part
call('HSET', ledger_key, unreported, string.format('%.0f %.0f', more, part))
return {more, part}
