-- trim_grants: trims unused units of a period's grants beyond a limit, first of grants that pay last. Writes nothing.
--   file: as `read_grants` returns it; known: the plan's grants of the period; given: units of the target in these
-- Returns the units that are granted afterwards.
--include pays_before
local function trim_grants(file, known, target, given, limit)
  local candidates = {}
  for _, grant in pairs(known) do
    if grant.target == target then
      candidates[#candidates + 1] = grant
    end
  end
  table.sort(candidates, pays_before)
  while #candidates > 0 do
    local grant = table.remove(candidates)
    local cut = math.min(grant.quantity - grant.used, given - limit)
    if cut > 0 then
      grant.quantity, grant.raised, given, file.due = grant.quantity - cut, -cut, given - cut, true
    end
  end
  return given
end
