-- unpack_presigned: how much of a gauge uploads hold that were presigned. An error where the field is damaged.
--   packed: the slot of five minutes before which a part of it ends, and how much that is, each; or false
local function unpack_presigned(packed, gauge, current_slot)
  local held, found = 0, {cmsgpack.unpack(packed or EMPTY_HOLDS)}
  if found[1] ~= FORM or #found % 2 == 0 then
    error('DAMAGED holds ' .. gauge)
  end
  for at = 2, #found, 2 do
    held = found[at] > current_slot and held + found[at + 1] or held
  end
  return held
end
