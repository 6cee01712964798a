#!lua
-- hold_upload: holds the bytes of a presigned upload until the event of its object arrives, for an hour at most.
--
-- KEYS[1] hash  levels: `GAUGE+`: what presigned uploads hold, packed (see unpack_presigned)
-- KEYS[2] hash  presigned uploads of an hour: digest of an object's key to its uploads, packed, for each: size, when it was
--               presigned (ms), slot of five minutes in which it ends, event that has settled it (empty: none)
-- ARGV  1 the gauge    2 digest of the object's key    3 size
--       last: the caller's clock (ms)
-- Reply {OK, now, until when it is held (ms)}
--       {TOO_MANY_UPLOADS, now}  of this key: nothing is done
--       the error DAMAGED        the held bytes are invalid: nothing is done
--include server_ms
--include unpack_presigned
--include hold_presigned
local levels_key, uploads_key = unpack(KEYS)
local gauge, upload, size, caller_ms = unpack(ARGV)
local call, now = redis.call, server_ms(caller_ms)
local current_slot, slot = math.floor(now / HOLD_SLOT_MS), math.floor((now + HOUR_MS) / HOLD_SLOT_MS)
unpack_presigned(call('HGET', levels_key, gauge .. '+'), gauge, current_slot)
local packed = call('HGET', uploads_key, upload)
local found = packed and {cmsgpack.unpack(packed)} or {FORM}
if #found >= PRESIGNED_MOST then
  return {TOO_MANY_UPLOADS, now}
end
for _, value in ipairs({tonumber(size), now, slot, ''}) do
  found[#found + 1] = value
end
call('HSET', uploads_key, upload, cmsgpack.pack(unpack(found)))
call('PEXPIRE', uploads_key, 2 * HOUR_MS)
hold_presigned(levels_key, gauge, slot, tonumber(size), current_slot)
return {OK, now, slot * HOLD_SLOT_MS}
