-- keep_ended: takes grants of the plan that have ended, but may live on, from those that must leave their hash.
--   file: as `read_grants` returns it; rolls: see roll_over
-- They stay, also those that are used up, as long as their period would otherwise give them again.
local function keep_ended(file, rolls)
  local starts, rules = unpack(rolls)
  local ended = {}
  for _, grant in ipairs(file.ended) do
    local name = string.match(grant.name, '^(p .*) %d+$')
    if name and rules[name] and grant.effective > starts[1] - 2 * MINUTE_MS then
      grant.until_ms, grant.changed = starts[#starts], true
      file.list[#file.list + 1] = grant
    else
      ended[#ended + 1] = grant
    end
  end
  file.ended = ended
end
