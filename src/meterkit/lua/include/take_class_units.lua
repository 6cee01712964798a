-- take_class_units: takes units of a class off a meter: those that are pending, then those that never were; the others were sealed.
--   meters: as read_counters gives them; sealed_in: see sealed_units; meter: one of them; class: its field; left: how many
--   units; most: of the class; tokens: of the events they go under; behind: units of another class that these were sent first
-- Returns what is left to take, what was taken, what was sealed.
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
