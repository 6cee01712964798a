-- burn: pays recorded units with grants, then with credits.
--   key, ledger_key: hashes; start, finish: of the period of `now` (ms); has_state: see write_grants
--   prepaid: {mark, recurring, paying, low}; paying: a meter each, {its name, its target, its credit's target or '',
--   cost (micro-credits a unit)}; low: a credit's target to {the share (%) of its youngest grant, and micro-credits
--   besides, below which it is low}
-- Nothing is written until `keep` is called.
-- Returns pay(i, rest): how many of the units of meter i grants pay, how many credits; keep(notices): writes what was
-- paid, and returns the notices with those of the credits whose balance has become low; see notify.
--include balance
--include spend_grants
--include write_grants
local function burn(key, ledger_key, prepaid, now, start, finish, has_state)
  local balances = balance(key, prepaid, start, finish, now, false)
  if balances.due and not balances.file then
    balances = balance(key, prepaid, start, finish, now, true)
  end
  local use, spent = spend_grants(key, balances, start, now)
  local function left_of(target)
    return balances.sums[target] and balances.sums[target].left or 0
  end
  local left_before = {}
  for target in pairs(prepaid.low) do
    left_before[target] = left_of(target)
  end
  local function pay(i, rest)
    local meter, target, credit, cost = unpack(prepaid.paying[i])
    local granted, credited = math.min(rest, left_of(target)), 0
    use(target, granted, meter)
    if cost > 0 then
      credited = math.min(rest - granted, math.floor(left_of(credit) / cost))
      use(credit, credited * cost, meter)
    end
    return granted, credited
  end
  local function keep(notices)
    local paying, burned = spent()
    write_grants(key, ledger_key, balances, paying, burned, prepaid, start, now, has_state)
    for target, low in pairs(prepaid.low) do
      local sum = balances.sums[target]
      local threshold = (sum and sum.last / 100 * low[1] or 0) + low[2]
      if left_before[target] >= threshold and left_of(target) < threshold then
        notices[#notices + 1] = {'credits.low', target, left_of(target)}
      end
    end
    return notices
  end
  return pay, keep
end
