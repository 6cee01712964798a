-- settle_presigned: releases the hold of one presigned upload of an object's key, once per event.
--   keys: hashes of presigned uploads (see hold_upload.lua), the older first; key: hash of levels; upload: digest of the
--   object's key; size, at_ms, id: of the event
-- Of uploads that are still held and were presigned before the event, it takes the first with its size, else the first.
--include hold_presigned
local function settle_presigned(keys, key, gauge, upload, size, at_ms, id, current_slot)
  local home, open, nth
  for _, name in ipairs(keys) do
    local packed = redis.call('HGET', name, upload)
    local found = packed and {cmsgpack.unpack(packed)} or {}
    for at = 2, #found, 4 do
      local asked, made_ms, slot, settled_by = unpack(found, at, at + 3)
      if settled_by == id then
        return
      elseif settled_by == '' and slot > current_slot and made_ms <= at_ms + MINUTE_MS
        and (not nth or asked == size and open[nth] ~= size) then
        home, open, nth = name, found, at
      end
    end
  end
  if nth then
    open[nth + 3] = id
    redis.call('HSET', home, upload, cmsgpack.pack(unpack(open)))
    hold_presigned(key, gauge, open[nth + 2], -open[nth], current_slot)
  end
end
