-- sum_grants: sums grants at `now`, by target: {left: units of paying grants, less the debt, was_there: 1 if one existed in the
-- period that began at `start`, otherwise 0, last: quantity of the newest, head: name of the one that pays first, or ''}.
-- Returns the sums, and the next instant (ms) at which they change without usage.
--include pays_before
local function sum_grants(file, start, now)
  local sums, changes_at = {}, NEVER_MS
  local function add(target, was_there, quantity, created)
    local sum = sums[target]
    if not sum then
      sum = {left = 0, was_there = 0, last = 0, born = 0, head = '', first = nil}
      sums[target] = sum
    end
    if was_there then
      sum.was_there = 1
    end
    if created > sum.born or created == sum.born and quantity > sum.last then
      sum.last, sum.born = quantity, created
    end
    return sum
  end
  for target, past in pairs(file.past) do
    add(target, past.at >= start, past.quantity, past.created)
  end
  for _, grant in ipairs(file.ended) do
    add(grant.target, grant.until_ms > start, grant.quantity, grant.created)
  end
  for _, grant in ipairs(file.list) do
    local sum = add(grant.target, grant.effective <= now, grant.quantity, grant.created)
    if grant.effective > now then
      changes_at = math.min(changes_at, grant.effective)
    elseif grant.expires > now then
      changes_at = math.min(changes_at, grant.expires)
      if grant.used < grant.quantity then
        sum.left = sum.left + (grant.quantity - grant.used)
        if not sum.first or pays_before(grant, sum.first) then
          sum.first, sum.head = grant, grant.name
        end
      end
    else
      changes_at = math.min(changes_at, grant.until_ms)
    end
  end
  for target, debt in pairs(file.debts) do
    if debt.owed > 0 then
      local sum = add(target, true, 0, 0)
      sum.left = sum.left - debt.owed
    end
  end
  return sums, changes_at
end
