-- unpack_meter: the numbers of a meter in this period.
-- Returns what was recorded as included, as overage, and what is pending; the slot of its holds, what is held since
-- then, and since the slot before; and its extras, packed (see unpack_extras). An error where the field is
-- damaged.
local function unpack_meter(packed, field)
  local form, included, overage, pending, slot, held, held_before, extras, more =
    cmsgpack.unpack(packed or EMPTY_METER)
  if form ~= FORM or not extras or more then
    error('DAMAGED field ' .. field)
  end
  return included, overage, pending, slot, held, held_before, extras
end
