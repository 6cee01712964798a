-- add_recurring_grants: adds the plan's recurring grants of a period that are not stored yet. Writes nothing.
--   file: as `read_grants` returns it; recurring: {name without the period, target, quantity, priority, life (ms; 0: the
--   period's rest; -1: what is left then lives on)} each, in the order in which they pay; start_ms, end_ms: of the period
--   limits: target to the most that a period gives whose plan changed, or nil; is_over: whether it is an earlier period
--   history: names the plans from which the limits follow: where it is that of what is stored, an edit of the plans file
--   has changed them, and nothing is trimmed; current: of an earlier period, the names of what the plan gives now, as a set
-- Per period a target gets no more than the most generous plan of the period grants: this plan adds only the difference to
-- what was granted before. With limits, the target gets those, and unused units beyond them are trimmed. `raised` of a
-- grant: units that are not stored yet; below 0: units that were trimmed. In an earlier period, a grant of the same name
-- that began anywhere in the period is the same grant, as the period may have moved since: of several, the youngest.
-- Another plans file may give it under another name, or for longer, by now. So nothing is added once younger grants are
-- stored, and what has ended counts as given; except for what ends with its period anyway.
--include trim_grants
local function add_recurring_grants(file, recurring, start_ms, end_ms, now, limits, history, is_over, current)
  if is_over and file.newest >= end_ms then
    return
  end
  local known, granted, targets_total, over, suffix = {}, {}, {}, {}, string.format(' %.0f', start_ms)
  for _, grant in ipairs(file.list) do
    local of_plan = string.sub(grant.name, 1, 1) == 'p'
    local is_inside = is_over and grant.effective >= start_ms and grant.effective < end_ms
    if of_plan and (is_inside or string.sub(grant.name, -#suffix) == suffix) then
      local name = string.match(grant.name, '^(.*) %d+$')
      if not known[name] or known[name].effective < grant.effective then
        known[name] = grant
      end
      granted[grant.target] = (granted[grant.target] or 0) + grant.quantity
      if grant.until_ms < end_ms then
        grant.until_ms, grant.changed, file.due = end_ms, true, true
      end
    end
  end
  for _, plan in ipairs(recurring) do
    targets_total[plan[2]], over[plan[1]] = (targets_total[plan[2]] or 0) + plan[3], 0
  end
  for target, limit in pairs(limits or {}) do
    targets_total[target] = limit
    granted[target] = granted[target] or 0
    if file.history ~= history then
      granted[target] = trim_grants(file, known, target, granted[target], limit)
    end
  end
  for _, grant in ipairs(is_over and file.ended or {}) do
    local name = string.match(grant.name, '^(p .*) %d+$')
    if name and grant.effective >= start_ms and grant.effective < end_ms and (over[name] or not current[name]) then
      over[name], granted[grant.target] = (over[name] or 0) + grant.quantity, (granted[grant.target] or 0) + grant.quantity
    end
  end
  for _, plan in ipairs(recurring) do
    local target, expires = plan[2], plan[5] <= 0 and end_ms or start_ms + plan[5]
    local grant = known[plan[1]]
    local given = (grant and grant.quantity or 0) + over[plan[1]]
    local missing = math.min(plan[3] - given, targets_total[target] - (granted[target] or 0))
    local is_gone = is_over and plan[5] >= 0 and (grant or {expires = expires}).expires <= now
    if missing > 0 and not is_gone then
      if not grant then
        grant = {
          name = plan[1] .. suffix, target = target, quantity = 0, used = 0, priority = plan[4], effective = start_ms,
          expires = expires, created = start_ms, until_ms = math.max(expires, end_ms),
        }
        file.list[#file.list + 1] = grant
      elseif grant.expires > now then
        grant.expires = math.max(grant.expires, expires)
        grant.until_ms = math.max(grant.until_ms, expires)
      end
      grant.quantity, grant.raised = grant.quantity + missing, missing
      granted[target], file.due = (granted[target] or 0) + missing, true
    end
  end
end
