-- hold_presigned: changes how much of a gauge presigned uploads hold until a slot; holds that are over are dropped.
--   key: hash of levels; by: below 0: it is given back
local function hold_presigned(key, gauge, slot, by, current_slot)
  local call, name, kept = redis.call, gauge .. '+', {FORM}
  local found = {cmsgpack.unpack(call('HGET', key, name) or EMPTY_HOLDS)}
  for at = 2, #found, 2 do
    local ends, held = found[at], found[at + 1]
    if ends == slot then
      held, by = held + by, 0
    end
    if ends > current_slot and held > 0 then
      kept[#kept + 1], kept[#kept + 2] = ends, held
    end
  end
  if by > 0 then
    kept[#kept + 1], kept[#kept + 2] = slot, by
  end
  if #kept > 1 then
    call('HSET', key, name, cmsgpack.pack(unpack(kept)))
  else
    call('HDEL', key, name)
  end
end
