-- unpack_object: unpacks the known state of an object's version: {removed, stored or listed; size; time (ms); sequencer;
-- type}. Nil: nothing is known. Raises an error if the field is damaged.
local function unpack_object(packed, field)
  if not packed then
    return nil
  end
  local form, kind, size, at_ms, sequencer, of_type, more = cmsgpack.unpack(packed)
  if form ~= FORM or not of_type or more then
    error('DAMAGED object ' .. field)
  end
  return {kind, size, at_ms, sequencer, of_type}
end
