-- is_by_lines: whether invoice lines bill the usage of a period, as decisions/customer_state.py has it for line_switches.
--   switches: instants (ms) from which invoice lines, and then metered prices again, in turn bill usage
--   period: its first instant, as text
local function is_by_lines(switches, period)
  local found = false
  for _, at_ms in ipairs(switches) do
    if at_ms <= tonumber(period) then
      found = not found
    end
  end
  return found
end
