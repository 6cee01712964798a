-- keep_ended: takes grants of the plan that have ended, but may live on, from those that must leave their hash.
--   file: as `read_grants` returns it; rolls: see roll_over
-- They stay, also those that are used up, as long as their period would otherwise give them again. Puts into file.newest
-- the name of a grant without its period, and when its youngest grant became effective (ms): all older ones were stored by
-- then.
local function keep_ended(file, rolls)
  local starts, rules = unpack(rolls)
  file.newest = {}
  for _, grants in ipairs({file.list, file.ended}) do
    for i = #grants, 1, -1 do
      local grant = grants[i]
      local name = string.match(grant.name, '^(p .*) %d+$')
      if name and rules[name] then
        file.newest[name] = math.max(file.newest[name] or 0, grant.effective)
        if grants == file.ended and grant.effective > starts[1] - 2 * MINUTE_MS then
          grant.until_ms, grant.changed = starts[#starts], true
          file.list[#file.list + 1] = table.remove(grants, i)
        end
      end
    end
  end
  -- Of several grants of a period that was another one then, the youngest stands for all.
  table.sort(file.list, function(a, b) return a.effective < b.effective end)
end
