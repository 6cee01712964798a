-- first_of: what became of the request that was the first with an idempotency key.
--   key: zset of the keys' digests, each until when it is remembered as billed (ms); with f before it: in flight
-- Returns REPEAT where it was billed, IN_FLIGHT where it has not ended, 0 where this is the first.
local function first_of(key, digest, now)
  if tonumber(redis.call('ZSCORE', key, digest) or 0) > now then
    return REPEAT
  elseif tonumber(redis.call('ZSCORE', key, 'f' .. digest) or 0) > now then
    return IN_FLIGHT
  end
  return 0
end
