-- return_payment: returns to a grant a part of what it has paid. If its own payment was refunded after the grant was used,
-- this takes the part back at once, at most the refund that is not taken back yet.
--   list, ledger: hashes of the customer's grants and their ledger; grant: as `read_payer` returns it
--include format_grant
local function return_payment(list, ledger, grant, part, now)
  local call, text = redis.call, string.format
  local reclaimed = math.min(part, grant.refunded - grant.taken - grant.owed)
  grant.used = grant.used - part
  if reclaimed > 0 then
    grant.quantity, grant.taken = grant.quantity - reclaimed, grant.taken + reclaimed
    call('HSET', ledger, 'refund ' .. grant.name, text('%.0f %.0f %.0f %.0f', grant.refunded, grant.taken, now, grant.owed))
  end
  if grant.used < grant.quantity then
    call('HSET', list, grant.name, format_grant(grant))
  else
    call('HDEL', list, grant.name)
  end
end
