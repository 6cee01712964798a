-- write_counters: writes changed fields of a customer's counters and their head, and sets when they expire.
--   hset, hset_count: arguments of the HSET: the key, h, room for the head, then the changed fields; how many there are
--   now, begins_ms, ends_ms, rev: of the head
--   expires_ms: when the counters expire by now; lives_ms: until when they matter, or NEVER_MS
--   spare_ms: how much longer they are kept then, so that the next call need not set that again
local function write_counters(hset, hset_count, now, begins_ms, ends_ms, rev, expires_ms, lives_ms, spare_ms)
  local is_longer = expires_ms < lives_ms
  expires_ms = is_longer and lives_ms + spare_ms or expires_ms
  hset[3] = cmsgpack.pack(FORM, now, begins_ms, ends_ms, expires_ms, rev)
  redis.call('HSET', unpack(hset, 1, hset_count))
  if is_longer and expires_ms == NEVER_MS then
    redis.call('PERSIST', hset[1])
  elseif is_longer then
    redis.call('PEXPIREAT', hset[1], expires_ms)
  end
end
