-- take_class_units: takes units of a class off a meter: pending ones first, then unsent ones. The rest was sealed.
--   meters: see read_counters; sealed_in: see sealed_units; meter: one of them; class: its field; left: units to take; most:
--   units of the class to take at most; tokens: of the events that report them; behind: units of another class that were
--   sent before these
-- Returns the units that are left to take, the units taken, and the units sealed.
local function take_class_units(meters, sealed_in, meter, class, left, most, tokens, behind)
  local part, pending, unsent = math.min(left, most), 0, meter[class] + behind
  for _, token in ipairs(tokens) do
    local place = meters[token]
    if place then
      unsent = unsent - place.pending
      local off = math.min(part - pending, place.pending)
      place.pending, pending = place.pending - off, pending + off
    end
    unsent = math.max(0, unsent - sealed_in(token, 'qlkdxzaf'))
  end
  local taken = pending + math.min(part - pending, unsent, meter[class])
  meter[class] = meter[class] - taken
  return left - part, taken, part - taken
end
