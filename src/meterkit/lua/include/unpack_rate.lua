-- unpack_rate: the three numbers of a rate; see advance_rate. An error where the field is damaged.
local function unpack_rate(packed, field)
  local form, slot, counted, previous, more = cmsgpack.unpack(packed or EMPTY_WINDOW)
  if form ~= FORM or not previous or more then
    error('DAMAGED field ' .. field)
  end
  return slot, counted, previous
end
