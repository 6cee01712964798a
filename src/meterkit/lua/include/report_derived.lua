-- report_derived: how many reported units of a meter go under the event of a derived one, which may have a cap of its own.
--   sent_on: of the meter, reported units that are included, reported overage, and units over its cap, in this order
--   quantity, over_cap: of the derived meter: all units, and how many of them are over its cap: the last ones
local function report_derived(sent_on, quantity, over_cap)
  local included, overage, over_cap_of_source = unpack(sent_on)
  if over_cap == 0 then
    return included + overage
  end
  return math.min(included, quantity - over_cap) + math.max(0, overage - math.max(0, over_cap - over_cap_of_source))
end
