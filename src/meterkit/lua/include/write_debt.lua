-- write_debt: writes a changed debt, or deletes a repaid one.
--   list: hash, the customer's grants
local function write_debt(list, target, debt)
  if debt.changed and debt.owed > 0 then
    redis.call('HSET', list, 'd ' .. target, string.format('%.0f %.0f', debt.owed, debt.since))
  elseif debt.changed then
    redis.call('HDEL', list, 'd ' .. target)
  end
end
