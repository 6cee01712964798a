-- read_funds: what a customer's grants come to by now, with what the plan gives and is not stored yet. Writes nothing.
--   key: hash of grants; prepaid: see grant_balance; start_ms, end_ms, next_end_ms: of the period, and of the next one
-- Returns flat lists: {grants: name, text; debts: target, micro-credits; lines of the ledger not written yet, quantity}
--include grant_balance
--include format_grant
local function read_funds(key, prepaid, start_ms, end_ms, next_end_ms, now)
  if now >= end_ms then
    start_ms, end_ms = end_ms, next_end_ms
  end
  local file = grant_balance(key, prepaid, start_ms, end_ms, now, true).file
  local grants, owed, debts, lines = {}, {}, {}, {}
  local function put_all(list, found, before)
    for name, quantity in pairs(found or {}) do
      list[#list + 1], list[#list + 2] = before .. name, string.format('%.0f', quantity)
    end
  end
  for _, found in ipairs({file.list, file.ended}) do
    for _, grant in ipairs(found) do
      grants[#grants + 1], grants[#grants + 2] = grant.name, format_grant(grant)
    end
  end
  for target, debt in pairs(file.debts) do
    owed[target] = debt.owed
  end
  put_all(debts, owed, '')
  put_all(lines, file.repaid, '')
  put_all(lines, file.rolled, '')
  put_all(lines, file.cut, 'expire ')
  return {grants, debts, lines}
end
