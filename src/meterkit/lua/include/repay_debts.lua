-- repay_debts: pays debts as `plan_repayment` does, and writes the result. An app's grant that this uses up leaves the hash.
--   list, ledger: hashes, the customer's grants and their ledger
-- Returns the stored grants, as `read_grants` does.
--include read_grants
--include format_grant
--include plan_repayment
--include write_debt
--include archive_grant
local function repay_debts(list, ledger, now)
  local file, stay = read_grants(list, now), {}
  plan_repayment(file, now)
  for _, grant in ipairs(file.ended) do
    if grant.changed then
      redis.call('HSET', list, grant.name, format_grant(grant))
    end
  end
  for _, grant in ipairs(file.list) do
    if grant.changed and grant.used == grant.quantity and string.sub(grant.name, 1, 1) == 'a' then
      archive_grant(list, ledger, file.past, grant, now)
    else
      stay[#stay + 1] = grant
      if grant.changed then
        redis.call('HSET', list, grant.name, format_grant(grant))
      end
    end
  end
  file.list = stay
  for target, debt in pairs(file.debts) do
    write_debt(list, target, debt)
  end
  for line, part in pairs(file.repaid) do
    redis.call('HINCRBY', ledger, line, string.format('%.0f', part))
  end
  return file
end
