-- return_to_grants: returns what grants or credits have paid for units of a meter in a period, in reverse order of payment.
-- A used-up grant can pay again; an expired or voided one gets nothing, and of a refunded one it is taken back at once. First
-- the debt of the period's usage is reduced, then the grants that repaid a debt get their payment back.
--   list, ledger: hashes of the customer's grants and their ledger; kind: 'm' or 'c'; meter: its name; period_start: of the
--   period, as text; units: of the meter; paid_units: all units that they have paid for
-- The cost of the units is their share of the whole cost, rounded up. Returns the returned amount, with what is
-- taken back of refunded grants.
--include read_payer
--include return_payment
--include pays_before
--include repay_debts
local function return_to_grants(list, ledger, kind, meter, period_start, units, paid_units, now)
  local call, text, paid, returned, total, known, beyond = redis.call, string.format, {}, 0, 0, {}, nil
  repay_debts(list, ledger, now)
  local lines = call('HGETALL', ledger)
  local function add_payment(name, line, quantity, is_repayment)
    known[name] = known[name] or read_payer(list, ledger, name, now)
    if known[name] then
      paid[#paid + 1] = {grant = known[name], line = line, paid = quantity + 0, is_repayment = is_repayment}
    end
  end
  for i = 1, #lines, 2 do
    local by, period, name = string.match(lines[i], '^%l+ (%S+) (%d+) (%S+.*)$')
    local is_burned, is_beyond = string.find(lines[i], '^burn '), string.find(lines[i], '^beyond ')
    local repayer = string.match(lines[i], '^repay (.+)$')
    if is_beyond and by == meter and period == period_start and string.sub(name, 1, 1) == kind then
      total, beyond = total + lines[i + 1], {line = lines[i], left = lines[i + 1] + 0, target = name}
    elseif is_burned and by == meter and period == period_start and string.sub(name, 3, 3) == kind then
      total = total + lines[i + 1]
      add_payment(name, lines[i], lines[i + 1], false)
    elseif repayer and string.sub(repayer, 3, 3) == kind then
      add_payment(repayer, lines[i], lines[i + 1], true)
    end
  end
  local cost_per_unit = math.floor(total / paid_units) -- Whole, or the product would pass what a number holds exactly.
  local cost = cost_per_unit * units + math.ceil((total - cost_per_unit * paid_units) * units / paid_units)
  local function lower(line, part)
    call('HINCRBY', ledger, line, text('%.0f', 0 - part))
  end
  if beyond then
    local debt = parse_debt(call('HGET', list, 'd ' .. beyond.target))
    returned = math.min(cost, beyond.left, debt.owed)
    debt.owed, debt.changed = debt.owed - returned, true
    write_debt(list, beyond.target, debt)
    beyond.left = beyond.left - returned
    lower(beyond.line, returned)
  end
  table.sort(paid, function(a, b)
    if a.is_repayment ~= b.is_repayment then
      return a.is_repayment
    end
    return pays_before(b.grant, a.grant)
  end)
  for _, payment in ipairs(paid) do
    local grant, room = payment.grant, payment.is_repayment and (beyond and beyond.left or 0) or payment.paid
    local part = math.min(cost - returned, payment.paid, grant.used, room)
    if part > 0 then
      returned = returned + part
      return_payment(list, ledger, grant, part, now)
      lower(payment.line, part)
      if payment.is_repayment then
        beyond.left = beyond.left - part
        lower(beyond.line, part)
      end
    end
  end
  if returned > 0 then
    call('HDEL', list, 'balance')
  end
  return returned
end
