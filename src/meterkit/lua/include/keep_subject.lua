-- keep_subject: writes the counters of a subject, and until when they live.
--   index_key: zset, the customer's subjects; begins_ms, ends_ms: of the customer's period; member: this subject's
--   write, w: its key, h, the place of its head, then the fields that change; packed: its head as it was, or false
--   lives_ms: until when its counters matter; spare_ms: how much longer they are kept, so that the next call need not
--   set that again
-- A subject that is new finds room where those have gone whose counters have expired. Where all are live it is not kept.
-- Returns whether it is kept.
--include head_of
--include keep_counters
local function keep_subject(index_key, begins_ms, ends_ms, now, member, write, w, packed, lives_ms, spare_ms)
  local call, _, _, _, expires_ms = redis.call, head_of(packed)
  if w == 3 then
    return true
  end
  if not packed then
    local over = call('ZRANGEBYSCORE', index_key, '-inf', now, 'LIMIT', 0, 100)
    if #over > 0 then
      call('ZREM', index_key, unpack(over))
    end
    if call('ZCOUNT', index_key, '-inf', '+inf') >= SUBJECTS_MOST then
      return false
    end
  end
  expires_ms = keep_counters(write, w, now, begins_ms, ends_ms, '', expires_ms, lives_ms, spare_ms)
  if expires_ms then
    call('ZADD', index_key, expires_ms, member)
    call('PEXPIREAT', index_key, call('ZRANGE', index_key, -1, -1, 'WITHSCORES')[2])
  end
  return true
end
