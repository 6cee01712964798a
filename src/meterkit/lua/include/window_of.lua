-- window_of: the three numbers of a rate (see advance), or of what is in flight: the slot of five minutes, how many of
-- it, how many of the one before. An error where the field is damaged.
local function window_of(packed, field)
  local form, slot, counted, previous, more = cmsgpack.unpack(packed or EMPTY_WINDOW)
  if form ~= FORM or not previous or more then
    error('DAMAGED field ' .. field)
  end
  return slot, counted, previous
end
