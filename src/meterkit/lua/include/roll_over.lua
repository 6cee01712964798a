-- roll_over: lets what is left of the plan's grants live on at the ends of their periods. Writes nothing.
--   file: as `read_grants` returns it, with what the periods give
--   rolls: {first instants of the latest periods, the oldest first, then the end of this one (ms); a grant's name without
--   its period to {the most of it that lives on, for how many periods} for each of these periods: the terms of the plan in
--   force when it began; how long the grants are known longer (ms), if the customer has no record}
-- What is left of the oldest grants is cut first. Puts into `file`: rolled, lines of the ledger to quantities; cut, names to
-- what was cut; keeps_ms.
--include plan_repayment
local function roll_over(file, rolls)
  local starts, rules, keeps_ms = unpack(rolls)
  local grants_of, first_places = {}, {}
  for _, grant in ipairs(file.list) do
    local name, first = string.match(grant.name, '^(p .*) %d+$'), 1
    if name and rules[name] then
      grants_of[name] = grants_of[name] or {}
      table.insert(grants_of[name], grant)
      for i = 1, #starts - 1 do -- A period that begins again within two minutes is the same one.
        first = first + (starts[i] < grant.effective + 2 * MINUTE_MS and 1 or 0)
      end
      first_places[grant.name] = first
    end
  end
  for _, grants in pairs(grants_of) do
    table.sort(grants, function(a, b) return a.effective > b.effective end)
  end
  file.rolled, file.cut, file.keeps_ms = {}, {}, keeps_ms
  for place = 1, #starts - 1 do
    local start, finish = starts[place], starts[place + 1]
    plan_repayment(file, start - 1)
    for name, grants in pairs(grants_of) do
      local room, periods = unpack(rules[name][place])
      for _, grant in ipairs(grants) do
        local age, left = place + 1 - first_places[grant.name], grant.quantity - grant.used
        local kept = math.min(left, room)
        if age > 0 and grant.expires >= finish then
          room = room - kept
        elseif age > 0 and age <= periods and grant.expires >= start and left > 0 then
          room, grant.used, grant.changed, file.due = room - kept, grant.used + left - kept, true, true
          if kept > 0 then
            grant.expires, grant.until_ms = finish, math.max(grant.until_ms, finish)
            file.rolled[string.format('rollover %.0f %.0f ', starts[place - 1] or start, start) .. grant.name] = kept
          end
          if kept < left then
            file.cut[grant.name] = (file.cut[grant.name] or 0) + left - kept
          end
        end
      end
    end
  end
end
