-- balance_text: the field, of what `balance` returns.
local function balance_text(held, purse, start)
  local due = held.due and 1 or 0
  local lines = {string.format('%s %.0f %.0f %s %d', held.since, held.turns, start, purse.mark, due)}
  for target, sum in pairs(held.sums) do
    lines[#lines + 1] = string.format('\n%s %.0f %d %.0f %s', target, sum.left, sum.had, sum.last, sum.head)
  end
  return table.concat(lines)
end
