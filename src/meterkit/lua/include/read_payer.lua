-- read_payer: reads a grant that has paid for usage, with the amount it has paid; nil: it was voided, or has expired.
--   list, ledger: hashes of the customer's grants and their ledger; name: of the grant
-- Adds to the grant how much of its payment was refunded, how much of that was taken back, and is owed; see reclaim_grant.
--include parse_grant
local function read_payer(list, ledger, name, now)
  local call = redis.call
  local found, added = call('HGET', list, name), call('HGET', ledger, 'grant ' .. name)
  local quantity, terms, expires = string.match(added or '', '^(%d+) (%d+ %d+ (%d+) %d+)$')
  local refunded, taken, owed = string.match(call('HGET', ledger, 'refund ' .. name) or '0 0 0 0', '^(%d+) (%d+) %d+ (%d+)')
  local target = string.match(name, '^a (%S+)') -- A plan's grant stays in the list until it has ended.
  if not found and quantity and target and not call('HGET', ledger, 'void ' .. name) then
    local used = string.format('%.0f', quantity - taken) -- All that was left of it was used when it left the list.
    found = table.concat({target, used, used, terms, expires}, ' ')
  end
  local grant = found and parse_grant(name, found)
  if not grant or grant.expires <= now then
    return nil
  end
  grant.refunded, grant.taken, grant.owed = tonumber(refunded), tonumber(taken), tonumber(owed)
  return grant
end
