-- store_balance: caches the sums of grants after a decision has read all of them.
--   key: hash, the grants; balances: as `grant_balance` returns it; prepaid, start: see grant_balance; ledger: hash, of the grants;
--   nil: grants that repay a debt are not written down; rev: of the customer's state
-- Requests of a customer in debt are refused, so no settlement writes which grants of the plan repay it. This does.
--include format_balance
--include write_grants
local function store_balance(key, ledger, balances, prepaid, start, now, rev)
  local file = balances.file
  local repays = file and next(file.repaid)
  if repays and ledger then
    write_grants(key, ledger, balances, {}, {}, prepaid, start, now, rev ~= NO_STATE)
  elseif file and file.found and not repays then
    redis.call('HSET', key, 'balance', format_balance(balances, prepaid, start))
  end
end
