-- grants: a customer's grants, in the order in which they are used up: by priority, expiry, creation, name.
--   key: hash, name to "target quantity used priority effective expires created used_at": units of a meter (m:NAME) or
--   micro-credits of a credit (c:NAME), times in ms; expires 9000000000000000 for never
--   recurring: the plan's, each {name but for the period, target, quantity, priority, life (ms; 0: the period's rest)}
-- The plan's that are not on file yet are among them, and those that the plan gives more of by now; `raised` says by
-- how much, `over` whether a grant ended before this period began. Nothing is written.
local function grants(key, recurring, now)
  local list, known = {}, {}
  local start, finish = period(now)
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local target, quantity, used, priority, effective, expires, created, used_at = string.match(fields[i + 1],
      '^(%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
    local grant = {
      name = fields[i], target = target, quantity = quantity + 0, used = used + 0, priority = priority + 0,
      effective = effective + 0, expires = expires + 0, created = created + 0, used_at = used_at + 0, raised = 0,
    }
    -- What the plan gave stays until it expires, or it would be given again.
    grant.over = grant.expires <= start
      or grant.used == grant.quantity and grant.used_at < start and string.sub(grant.name, 1, 2) == 'a '
    list[#list + 1], known[grant.name] = grant, grant
  end
  for _, plan in ipairs(recurring) do
    local name = plan[1] .. string.format('%.0f', start)
    local grant = known[name]
    if not grant then
      grant = {
        name = name, target = plan[2], quantity = 0, used = 0, priority = plan[4], effective = start,
        expires = plan[5] == 0 and finish or start + plan[5], created = start, used_at = 0, raised = 0,
      }
      list[#list + 1] = grant
    end
    if grant.quantity < plan[3] then
      grant.raised, grant.quantity = plan[3] - grant.quantity, plan[3]
    end
  end
  table.sort(list, function(a, b)
    if a.priority ~= b.priority then
      return a.priority < b.priority
    elseif a.expires ~= b.expires then
      return a.expires < b.expires
    elseif a.created ~= b.created then
      return a.created < b.created
    end
    return a.name < b.name
  end)
  return list
end
