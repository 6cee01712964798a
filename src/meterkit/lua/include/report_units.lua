-- report_units: adds up the units of a meter that are reported to Stripe under its own event.
--   event: whose event they go under, see settle; included, overage: units that are reported; over_cap: units over the cap
--   units: all units of the meter; source: of the last meter with REPORTED_BY_DERIVED {included, overage, over_cap}
-- A derived meter may have a cap of its own: what is over it are its last units.
-- Returns the units, and source for the next meter.
local function report_units(event, included, overage, over_cap, units, source)
  if event == REPORTED_BY_DERIVED then
    return 0, {included, overage, over_cap}
  elseif event ~= REPORTS_FOR_SOURCE then
    return included + overage, source
  end
  local source_included, source_overage, source_over_cap = unpack(source)
  if over_cap > 0 then
    source_included = math.min(source_included, units - over_cap)
    source_overage = math.max(0, source_overage - math.max(0, over_cap - source_over_cap))
  end
  return source_included + source_overage, source
end
