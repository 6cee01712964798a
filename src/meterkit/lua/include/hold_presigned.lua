-- hold_presigned: changes how much of a gauge presigned uploads hold until a slot, and drops holds that are over.
--   key: hash of levels; change: below 0: it is released
local function hold_presigned(key, gauge, slot, change, current_slot)
  local call, name, holds = redis.call, gauge .. '+', {FORM}
  local stored = {cmsgpack.unpack(call('HGET', key, name) or EMPTY_HOLDS)}
  for at = 2, #stored, 2 do
    local ends, held = stored[at], stored[at + 1]
    if ends == slot then
      held, change = held + change, 0
    end
    if ends > current_slot and held > 0 then
      holds[#holds + 1], holds[#holds + 2] = ends, held
    end
  end
  if change > 0 then
    holds[#holds + 1], holds[#holds + 2] = slot, change
  end
  if #holds > 1 then
    call('HSET', key, name, cmsgpack.pack(unpack(holds)))
  else
    call('HDEL', key, name)
  end
end
