-- archive_grant: moves a grant that no longer pays from the list to the ledger and to "past TARGET".
--   list, ledger: hashes; past: of read_grants; this updates it; at: until when the grant paid
--   (ms)
local function archive_grant(list, ledger, past, grant, at)
  local call, target = redis.call, grant.target
  call('HDEL', list, grant.name)
  if grant.quantity > grant.used then
    -- A plan's name may come back, with a longer period that began then.
    local line = 'expire ' .. grant.name
    local known = string.match(call('HGET', ledger, line) or '0', '^%d+')
    call('HSET', ledger, line, string.format('%.0f %.0f', known + grant.quantity - grant.used, grant.expires))
  end
  local was = past[target] or {at = 0, quantity = 0, created = 0}
  local quantity, created = was.quantity, was.created
  if grant.created > created or grant.created == created and grant.quantity > quantity then
    quantity, created = grant.quantity, grant.created
  end
  past[target] = {at = math.max(was.at, at), quantity = quantity, created = created}
  call('HSET', list, 'past ' .. target, string.format('%.0f %.0f %.0f', past[target].at, quantity, created))
end
