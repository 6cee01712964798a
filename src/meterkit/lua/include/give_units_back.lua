-- give_units_back: gives back what grants, or credits, have paid for a meter in a period, to the grants that paid it:
-- what would be used up last first. One that was used up pays again; one that has expired or was voided gets nothing.
--   list, ledger: hashes, the customer's grants and their ledger; kind: 'm' or 'c'; meter: its name; start: of the
--   period, as text; units: of the meter; all: how many they have paid for
-- What the units did cost is their part of what all of them did, rounded up. Returns how much was given back.
--include grant_of
--include pays_before
local function give_units_back(list, ledger, kind, meter, start, units, all, now)
  local call, text, paid, given, total = redis.call, string.format, {}, 0, 0
  local lines = call('HGETALL', ledger)
  for i = 1, #lines, 2 do
    local by, period, name = string.match(lines[i], '^burn (%S+) (%d+) (. .:.+)$')
    if by == meter and period == start and string.sub(name, 3, 3) == kind then
      total = total + lines[i + 1]
      local found, added = call('HGET', list, name), call('HGET', ledger, 'grant ' .. name)
      local quantity, terms, expires = string.match(added or '', '^(%d+) (%d+ %d+ (%d+) %d+)$')
      if not found and quantity and not call('HGET', ledger, 'void ' .. name) then
        -- All of it was used when it left the list.
        found = table.concat({string.match(name, '^. (%S+)'), quantity, quantity, terms, expires}, ' ')
      end
      local grant = found and grant_of(name, found)
      if grant and grant.expires > now then
        grant.line, grant.paid = lines[i], lines[i + 1] + 0
        paid[#paid + 1] = grant
      end
    end
  end
  local each = math.floor(total / all) -- Whole, or the product would pass what a number holds exactly.
  local most = each * units + math.ceil((total - each * all) * units / all)
  table.sort(paid, function(a, b) return pays_before(b, a) end)
  for _, grant in ipairs(paid) do
    local part = math.min(most - given, grant.paid, grant.used)
    if part > 0 then
      call('HSET', list, grant.name, text('%s %.0f %.0f %.0f %.0f %.0f %.0f %.0f', grant.target, grant.quantity,
        grant.used - part, grant.priority, grant.effective, grant.expires, grant.created, grant.until_ms))
      call('HINCRBY', ledger, grant.line, text('-%.0f', part))
      given = given + part
    end
  end
  if given > 0 then
    call('HDEL', list, 'balance')
  end
  return given
end
