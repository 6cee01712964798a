-- assign_lines: assigns units that a correction leaves recorded to invoice lines. No unit of a line is assigned twice.
--   totals_key: hash; totals: as read; open_period: its first instant, as text; is_this: true: lines of the open period;
--   false: of earlier ones; units_left: units to assign; bound(period): units of a period at most
--   lines: of the meter, newest first: {token of its event, name, an instant within it (ms), units, entry for the result}
-- PERIOD|METERH has an entry for each line, `NAME UNITS;`: the units that all corrections have assigned to it.
-- Returns the units assigned by period, and for each line {entry, units assigned before, units assigned now}.
local function assign_lines(totals_key, totals, open_period, is_this, lines, units_left, bound)
  local by_period, assigned = {}, {}
  local function period_of(instant_ms)
    if instant_ms >= tonumber(open_period) then
      return open_period
    end
    for name, ends in pairs(totals) do
      local period = string.match(name, '^(%d+)|e$')
      if period and tonumber(period) <= instant_ms and instant_ms < tonumber(ends) then
        return period
      end
    end
    return '' -- Nothing was recorded in it.
  end
  for _, line in ipairs(lines) do
    local token, name, instant_ms, units, kept = unpack(line)
    local period = period_of(instant_ms)
    local field, others, before = period .. '|' .. token .. 'H', '', 0
    for entry, count in string.gmatch(totals[field] or '', '([^ ;]+) (%d+);') do
      if entry == name then
        before = tonumber(count)
      else
        others = others .. entry .. ' ' .. count .. ';'
      end
    end
    if (period == open_period) == is_this then
      local assigned_units = by_period[period] or 0
      local part = math.min(units_left, units - before, bound(period) - assigned_units)
      if part > 0 then
        units_left, by_period[period] = units_left - part, assigned_units + part
        totals[field] = string.format('%s%s %.0f;', others, name, before + part)
        redis.call('HSET', totals_key, field, totals[field])
        assigned[#assigned + 1] = {kept, string.format('%.0f', before), string.format('%.0f', part)}
      end
    end
  end
  return by_period, assigned
end
