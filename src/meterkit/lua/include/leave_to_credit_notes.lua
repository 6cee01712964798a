-- leave_to_credit_notes: leaves overage to credit notes that no negative event can take back: units on invoice lines of
-- ended price segments and of earlier periods.
--   totals_key: hash; totals: as read; open_period: its first instant, as text; token: of the meter; lines: see assign_lines
--   owed: sealed units of this period to compensate; open: those of the open price segment, see sealed_units; left: units
--   beyond those recorded in this period
-- Returns the units of the open segment to compensate, the units on lines of this period, those on lines of earlier periods,
-- and the lines, see assign_lines.
--include assign_lines
local function leave_to_credit_notes(totals_key, totals, open_period, token, lines, owed, open, left)
  local stuck = math.min(owed, math.max(0, open))
  local ended, found = assign_lines(totals_key, totals, open_period, true, lines, owed - stuck, function()
    return owed
  end)
  local past, more = assign_lines(totals_key, totals, open_period, false, lines, left, function(period)
    local field = period .. '|' .. token
    return (totals[field .. 'o'] or 0) - (totals[field .. 'r'] or 0)
  end)
  local earlier = 0
  for period, units in pairs(past) do
    earlier = earlier + units
    redis.call('HINCRBY', totals_key, period .. '|' .. token .. 'r', string.format('%.0f', units))
  end
  for _, line in ipairs(more) do
    found[#found + 1] = line
  end
  if #found > 0 then
    redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
  end
  return stuck, ended[open_period] or 0, earlier, found
end
