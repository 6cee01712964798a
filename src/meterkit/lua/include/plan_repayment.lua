-- plan_repayment: pays debts with grants that became effective after the debt arose, earliest first. Writes nothing.
--   file: as `read_grants` returns it; a grant that has ended since then pays as well: it was effective
-- Changes the grants and debts of the file; puts into file.repaid lines of the ledger to what a grant repaid.
--include pays_before
local function plan_repayment(file, now)
  local function comes_before(a, b)
    if a.effective ~= b.effective then
      return a.effective < b.effective
    end
    return pays_before(a, b)
  end
  for target, debt in pairs(file.debts) do
    local candidates = {}
    for _, grants in ipairs({file.list, file.ended}) do
      for _, grant in ipairs(grants) do
        if grant.target == target and grant.effective <= now and grant.expires > debt.since then
          candidates[#candidates + 1] = grant
        end
      end
    end
    table.sort(candidates, comes_before)
    for _, grant in ipairs(candidates) do
      local part = math.min(grant.quantity - grant.used, debt.owed)
      if part > 0 then
        grant.used, debt.owed = grant.used + part, debt.owed - part
        grant.changed, debt.changed, file.due = true, true, true
        local line = 'repay ' .. grant.name -- A plan's name may come back, with a longer period that began then.
        file.repaid[line] = (file.repaid[line] or 0) + part
      end
    end
  end
end
