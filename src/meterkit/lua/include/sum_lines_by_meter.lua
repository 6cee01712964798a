-- sum_lines_by_meter: sums the lines of each meter and period if there are more lines than an invoice has room for.
--   lines: period, meter, name, label, value (as text) each; most: the largest number that stays apart
-- Returns the lines. One that sums several prices has parts: {label, value} each; its label is the first of them.
local function sum_lines_by_meter(lines, most)
  if #lines <= most then
    return lines
  end
  local grouped, sums = {}, {}
  for _, line in ipairs(lines) do
    local sum = sums[line.period .. '|' .. line.meter]
    if sum then
      sum.parts = sum.parts or {{sum.label, sum.value}}
      sum.parts[#sum.parts + 1] = {line.label, line.value}
      sum.value = string.format('%.0f', sum.value + line.value)
    else
      sums[line.period .. '|' .. line.meter] = line
      grouped[#grouped + 1] = line
    end
  end
  return grouped
end
