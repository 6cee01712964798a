-- price_late_usage: finds the prices at which pending units of a closed period were recorded, newest units first.
--   totals: as read; period: its first instant, as text; token: of the meter; quantity: its pending units. The price of
--   the latest ones may be stored; see follow_prices
--   label: of the meter's current price; priced: token of the meter that has this price: its source, or its present name
--   by_lines: whether invoice lines bill the period: then segments count units that go to Stripe, not overage
--   has_included: 1 if Stripe gets included units, too: they cost nothing, and were recorded before all overage
-- Returns a list of {label, units}; label `?`: the price is not known; INCLUDED_LABEL: they are included.
local function price_late_usage(totals, period, token, quantity, label, priced, by_lines, has_included)
  local marks, after_ms, within = {}, nil, 0
  for name, value in pairs(totals) do
    local at, of = string.match(name, '^(%d+)|(....)y$')
    local at_ms, is_priced = tonumber(at), of == priced
    local is_first = not after_ms or at_ms and (at_ms < after_ms or at_ms == after_ms and is_priced)
    if (is_priced or of == token) and at_ms > tonumber(period) and is_first then
      label, after_ms = value, at_ms -- The first price that ended in a later period was active at the end of this one.
    end
  end
  label = totals[period .. '|' .. priced .. 'Y'] or label
  for ended, sealed, overage in string.gmatch(totals[period .. '|' .. priced .. 's'] or '', '([^ ;]+) (%d+) (%d+);') do
    marks[#marks + 1] = {ended, tonumber(by_lines and sealed or overage)}
  end
  if priced ~= token and (#marks > 0 or totals[period .. '|' .. token .. 's']) then
    return {{'?', quantity}}
  end
  local parts, left, recorded = {}, quantity, tonumber(totals[period .. '|' .. token .. 'o'] or '0')
  if has_included == 1 then
    within = math.max(0, quantity - recorded)
    left = quantity - within
  end
  if by_lines then
    recorded = quantity
    for letter in string.gmatch('qlkdxft', '.') do
      recorded = recorded + (totals[period .. '|' .. token .. letter] or 0)
    end
  end
  while #marks > 0 do
    local ended, overage = unpack(table.remove(marks))
    local units = math.min(left, math.max(0, recorded - overage))
    if units > 0 then
      parts[#parts + 1] = {label, units}
    end
    left, recorded, label = left - units, math.min(recorded, overage), ended
  end
  if left > 0 then
    parts[#parts + 1] = {label, left}
  end
  if within > 0 then
    parts[#parts + 1] = {INCLUDED_LABEL, within}
  end
  for _, part in ipairs(parts) do
    part[1] = string.gsub(part[1], '%*$', '')
  end
  return parts
end
