-- write_counters: writes counters, their head first, and until when they live.
--   write, w: their key, h, the place of the head, then the fields that change
--   now, begins_ms, ends_ms, rev: of the head; expires_ms: when they expire by now; lives_ms: until when they matter
--   spare_ms: how much longer they are kept then, so that the next call need not set that again
-- Returns when they expire, if that has changed.
local function write_counters(write, w, now, begins_ms, ends_ms, rev, expires_ms, lives_ms, spare_ms)
  local is_longer = expires_ms < lives_ms
  expires_ms = is_longer and lives_ms + spare_ms or expires_ms
  write[3] = cmsgpack.pack(FORM, now, begins_ms, ends_ms, expires_ms, rev)
  redis.call('HSET', unpack(write, 1, w))
  if is_longer then
    redis.call('PEXPIREAT', write[1], expires_ms)
    return expires_ms
  end
  return nil
end
