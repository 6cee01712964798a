-- read_payer: reads a grant that has paid for usage, with the amount it has paid; nil: it was voided, or has expired.
--   list, ledger: hashes of the customer's grants and their ledger; name: of the grant
--include parse_grant
local function read_payer(list, ledger, name, now)
  local call = redis.call
  local found, added = call('HGET', list, name), call('HGET', ledger, 'grant ' .. name)
  local quantity, terms, expires = string.match(added or '', '^(%d+) (%d+ %d+ (%d+) %d+)$')
  if not found and quantity and not call('HGET', ledger, 'void ' .. name) then
    -- All of it was used when it left the list.
    found = table.concat({string.match(name, '^. (%S+)'), quantity, quantity, terms, expires}, ' ')
  end
  local grant = found and parse_grant(name, found)
  return grant and grant.expires > now and grant or nil
end
