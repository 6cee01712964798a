-- write_subject: writes the counters of a subject, and sets when they expire.
--   index_key: zset, the customer's subjects; member: this subject's
--   hset, hset_count: arguments of the HSET: the subject's key, then the changed fields; how many there are
--   expires_ms: when it expires; 0: it is new
--   lives_ms: until when its counters matter; spare_ms: how much longer they are kept, so that the next call need not
--   set that again
-- A new subject takes the room of subjects whose counters have expired. If there is no room, it is not stored.
-- Returns whether it is stored.
local function write_subject(index_key, now, member, hset, hset_count, expires_ms, lives_ms, spare_ms)
  local call = redis.call
  if hset_count == 1 then
    return true
  elseif lives_ms <= expires_ms then
    call('HSET', unpack(hset, 1, hset_count))
    return true
  elseif expires_ms == 0 then
    local expired = call('ZRANGEBYSCORE', index_key, '-inf', now, 'LIMIT', 0, 100)
    if #expired > 0 then
      call('ZREM', index_key, unpack(expired))
    end
    if call('ZCOUNT', index_key, '-inf', '+inf') >= LIVE_SUBJECTS_MOST then
      return false
    end
  end
  expires_ms = lives_ms + spare_ms
  hset[hset_count + 1], hset[hset_count + 2] = 'h', cmsgpack.pack(FORM, expires_ms)
  call('HSET', unpack(hset, 1, hset_count + 2))
  call('PEXPIREAT', hset[1], expires_ms)
  call('ZADD', index_key, expires_ms, member)
  call('PEXPIREAT', index_key, call('ZRANGE', index_key, -1, -1, 'WITHSCORES')[2])
  return true
end
