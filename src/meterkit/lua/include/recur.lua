-- recur: adds what the plan gives in this period and is not on file yet. Nothing is written.
--   file: as `grants` returns it; recurring: {name without the period, target, quantity, priority, life (ms; 0: the
--   period's rest)} each, in the order in which they are used up; start, finish: of the period
-- A target gets no more in a period than the most generous plan gave: the given part equals this plan's
-- in all, or it is the more. `raised` says how much of a grant is not on file.
local function recur(file, recurring, start, finish, now)
  local known, given, whole, suffix = {}, {}, {}, string.format(' %.0f', start)
  for _, grant in ipairs(file.list) do
    known[grant.name] = grant
    if string.sub(grant.name, 1, 1) == 'p' and string.sub(grant.name, -#suffix) == suffix then
      given[grant.target] = (given[grant.target] or 0) + grant.quantity
      if grant.until_ms < finish then
        grant.until_ms, grant.changed, file.due = finish, true, true
      end
    end
  end
  for _, plan in ipairs(recurring) do
    whole[plan[2]] = (whole[plan[2]] or 0) + plan[3]
  end
  for _, plan in ipairs(recurring) do
    local target, expires = plan[2], plan[5] == 0 and finish or start + plan[5]
    local grant = known[plan[1] .. suffix]
    local more = math.min(plan[3] - (grant and grant.quantity or 0), whole[target] - (given[target] or 0))
    if more > 0 then
      if not grant then
        grant = {
          name = plan[1] .. suffix, target = target, quantity = 0, used = 0, priority = plan[4], effective = start,
          expires = expires, created = start, until_ms = math.max(expires, finish),
        }
        file.list[#file.list + 1] = grant
      elseif grant.expires > now then
        grant.expires = math.max(grant.expires, expires)
        grant.until_ms = math.max(grant.until_ms, expires)
      end
      grant.quantity, grant.raised = grant.quantity + more, more
      given[target], file.due = (given[target] or 0) + more, true
    end
  end
end
