-- pay_with_grants: pays recorded units with grants, then with credits. Usage beyond a balance in money becomes a debt.
--   key, ledger_key: hashes; start_ms, end_ms: of the period of `now` (ms); has_state: see write_grants
--   prepaid: {mark, recurring, paying, low}; paying: a meter each, {its name, its target, its credit's target or '',
--   cost (micro-credits a unit)}; low: a credit's target to {the share (%) of its newest grant, and micro-credits
--   more, below which the balance is low}; money: the target of the credit in money, or ''
-- Nothing is written until `keep` is called.
-- Returns pay(i, rest): how many of the units of meter i grants pay, how many credits; keep(notices): writes the
-- payments, and returns the notices, with one for each credit whose balance has become low; see queue_notices.
--include grant_balance
--include spend_grants
--include parse_debt
--include write_grants
local function pay_with_grants(key, ledger_key, prepaid, now, start_ms, end_ms, has_state)
  local balances = grant_balance(key, prepaid, start_ms, end_ms, now, false)
  if balances.due and not balances.file then
    balances = grant_balance(key, prepaid, start_ms, end_ms, now, true)
  end
  local spend, list_payments = spend_grants(key, balances, start_ms, now)
  local function left_of(target)
    return balances.sums[target] and balances.sums[target].left or 0
  end
  local left_before, new_debts = {}, {}
  for target in pairs(prepaid.low) do
    left_before[target] = left_of(target)
  end
  local function add_debt(target, asked, meter)
    local sum = balances.sums[target] or {left = 0, last = 0, head = ''}
    local quantity = math.min(asked, MOST + sum.left) -- Beyond that, Lua's numbers are not exact.
    if quantity > 0 then
      sum.left, sum.was_there, balances.sums[target] = sum.left - quantity, 1, sum
      new_debts[#new_debts + 1] = {target, quantity, string.format('beyond %s %.0f %s', meter, start_ms, target)}
    end
  end
  local function pay(i, rest)
    local meter, target, credit, cost = unpack(prepaid.paying[i])
    local granted, credited = math.min(rest, left_of(target)), 0
    spend(target, granted, meter)
    if cost > 0 then
      credited = math.min(rest - granted, math.floor(math.max(0, left_of(credit)) / cost))
      spend(credit, credited * cost, meter)
    end
    if cost > 0 and credit == prepaid.money then
      add_debt(credit, (rest - granted - credited) * cost, meter)
      credited = rest - granted
    end
    return granted, credited
  end
  local function keep_payments(notices)
    local paying, burned = list_payments()
    for _, part in ipairs(new_debts) do
      local target, quantity, line = unpack(part)
      local debt = balances.debts[target] or parse_debt(redis.call('HGET', key, 'd ' .. target))
      debt.owed, debt.since, debt.changed, balances.debts[target] = debt.owed + quantity, now, true, debt
      burned[line] = (burned[line] or 0) + quantity
    end
    write_grants(key, ledger_key, balances, paying, burned, prepaid, start_ms, now, has_state)
    for target, low in pairs(prepaid.low) do
      local sum = balances.sums[target]
      local threshold = (sum and sum.last / 100 * low[1] or 0) + low[2]
      if left_before[target] >= threshold and left_of(target) < threshold then
        notices[#notices + 1] = {'credits.low', target, left_of(target)}
      end
    end
    return notices
  end
  return pay, keep_payments
end
