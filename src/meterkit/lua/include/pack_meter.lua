-- pack_meter: the field of a meter's numbers, as read_meter gives them.
local function pack_meter(meter)
  local extras = cmsgpack.pack(meter.granted, meter.credited, meter.late, meter.stamped_ms, meter.over_cap)
  return cmsgpack.pack(FORM, meter.included, meter.overage, meter.pending, meter.slot, meter.held, meter.held_before,
    extras == EMPTY_EXTRAS and '' or extras)
end
