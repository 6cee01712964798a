-- write_subject: writes the counters of a subject, and until when they live.
--   index_key: zset, the customer's subjects; member: this subject's
--   write, w: its key, then the fields that change; packed: its field h, which has when it expires (ms), or false
--   lives_ms: until when its counters matter; spare_ms: how much longer they are kept, so that the next call need not
--   set that again
-- A subject that is new finds room where those have gone whose counters have expired. Where all are live it is not kept.
-- Returns whether it is kept.
local function write_subject(index_key, now, member, write, w, packed, lives_ms, spare_ms)
  local call, form, expires_ms, more = redis.call, cmsgpack.unpack(packed or EMPTY_LIFE)
  if form ~= FORM or not expires_ms or more then
    error('DAMAGED field h')
  elseif w == 1 then
    return true
  elseif lives_ms <= expires_ms then
    call('HSET', unpack(write, 1, w))
    return true
  elseif not packed then
    local over = call('ZRANGEBYSCORE', index_key, '-inf', now, 'LIMIT', 0, 100)
    if #over > 0 then
      call('ZREM', index_key, unpack(over))
    end
    if call('ZCOUNT', index_key, '-inf', '+inf') >= SUBJECTS_MOST then
      return false
    end
  end
  expires_ms = lives_ms + spare_ms
  write[w + 1], write[w + 2] = 'h', cmsgpack.pack(FORM, expires_ms)
  call('HSET', unpack(write, 1, w + 2))
  call('PEXPIREAT', write[1], expires_ms)
  call('ZADD', index_key, expires_ms, member)
  call('PEXPIREAT', index_key, call('ZRANGE', index_key, -1, -1, 'WITHSCORES')[2])
  return true
end
