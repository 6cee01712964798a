-- write_grants: writes the changes of a customer's grants: payments, new recurring grants, ended grants.
--   list, ledger: hashes; has_state: whether the customer has a record; balances: as `grant_balance` returns it, less
--   what was paid; paying: the grants that paid; burned: ledger lines to the amounts paid
--include archive_grant
--include format_grant
--include write_debt
--include sum_grants
--include format_balance
local function write_grants(list, ledger, balances, paying, burned, prepaid, start, now, has_state)
  local call, file = redis.call, balances.file
  local set, stay, last, grew, owes = {list}, {}, now, false, false
  local function put(grant)
    set[#set + 1], set[#set + 2] = grant.name, format_grant(grant)
  end
  for _, grant in ipairs(file and file.ended or {}) do
    archive_grant(list, ledger, file.past, grant, grant.until_ms - 1)
  end
  for _, grant in ipairs(file and file.list or {}) do
    if grant.raised ~= 0 then
      grew = true
      local line = string.format('%.0f %.0f %.0f %.0f %.0f', grant.quantity, grant.priority, grant.effective, grant.expires,
        grant.created)
      if call('HSETNX', ledger, 'grant ' .. grant.name, line) == 0 then
        local raise = string.format('raise %.0f ', grant.quantity - grant.raised) .. grant.name
        call('HINCRBY', ledger, raise, string.format('%.0f', grant.raised))
      end
    end
    if grant.used == grant.quantity and string.sub(grant.name, 1, 1) == 'a' then
      archive_grant(list, ledger, file.past, grant, now)
    else
      stay[#stay + 1], last = grant, math.max(last, grant.until_ms)
      if grant.changed or grant.raised ~= 0 then
        put(grant)
      end
    end
  end
  for _, grant in pairs(file and {} or paying) do
    put(grant)
  end
  for _, lines in ipairs({burned, file and file.repaid}) do
    for line, quantity in pairs(lines) do
      call('HINCRBY', ledger, line, string.format('%.0f', quantity))
    end
  end
  for target, debt in pairs(balances.debts) do
    write_debt(list, target, debt)
    grew, owes = grew or debt.changed, owes or debt.owed > 0
  end
  if file then
--include write_rolled
    grew = write_rolled(ledger, file, set) or grew
    file.list, file.ended, balances.due, balances.since = stay, {}, false, string.format('%.0f', now)
    balances.sums, balances.changes_at = sum_grants(file, start, now)
  end
  if #set > 1 or owes or file and file.found then
    set[#set + 1], set[#set + 2] = 'balance', format_balance(balances, prepaid, start)
    set[#set + 1], set[#set + 2] = 'written', string.format('%.0f %s', start, prepaid.history or '')
    call('HSET', unpack(set))
  end
  for _, key in ipairs(grew and {list, ledger} or {}) do
    if has_state or owes or file and next(file.once) and not prepaid.fleeting then
      call('PERSIST', key)
    else
      call('PEXPIREAT', key, last + FORTY_DAYS_MS + (file and file.keeps_ms or 0))
    end
  end
end
