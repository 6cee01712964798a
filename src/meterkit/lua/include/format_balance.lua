-- format_balance: the field, of what `grant_balance` returns.
local function format_balance(balances, prepaid, start)
  local due = balances.due and 1 or 0
  local lines = {string.format('%s %.0f %.0f %s %d %s', balances.since, balances.changes_at, start, prepaid.mark, due,
    BALANCE_FORM)}
  for target, sum in pairs(balances.sums) do
    lines[#lines + 1] = string.format('\n%s %.0f %d %.0f %s', target, sum.left, sum.was_there, sum.last, sum.head)
  end
  return table.concat(lines)
end
