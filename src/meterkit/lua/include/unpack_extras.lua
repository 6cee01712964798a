-- unpack_extras: the numbers of a meter that are seldom asked for: what grants paid in this period, what credits paid,
-- what occurred in an earlier one; the minute that the meter's last intent was stamped with (ms); units beyond the cap.
local function unpack_extras(packed)
  return cmsgpack.unpack(packed == '' and EMPTY_EXTRAS or packed)
end
