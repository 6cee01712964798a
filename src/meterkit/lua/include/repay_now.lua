-- repay_now: pays debts as `repay` does, and writes that down. A grant of the app's that this uses up leaves.
--   list, ledger: hashes, the customer's grants and their ledger
-- Returns the grants on file, as `grants` does.
--include grants
--include grant_text
--include repay
--include keep_debt
--include put_away
local function repay_now(list, ledger, now)
  local file, stay = grants(list, now), {}
  repay(file, now)
  for _, grant in ipairs(file.ended) do
    if grant.changed then
      redis.call('HSET', list, grant.name, grant_text(grant))
    end
  end
  for _, grant in ipairs(file.list) do
    if grant.changed and grant.used == grant.quantity and string.sub(grant.name, 1, 1) == 'a' then
      put_away(list, ledger, file.past, grant, now)
    else
      stay[#stay + 1] = grant
      if grant.changed then
        redis.call('HSET', list, grant.name, grant_text(grant))
      end
    end
  end
  file.list = stay
  for target, debt in pairs(file.debts) do
    keep_debt(list, target, debt)
  end
  for line, part in pairs(file.repaid) do
    redis.call('HINCRBY', ledger, line, string.format('%.0f', part))
  end
  return file
end
