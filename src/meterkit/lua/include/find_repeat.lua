-- find_repeat: what became of the request that was the first with an idempotency key.
--   key: zset of the keys' digests, each until when it is remembered as billed (ms); with f before it: in flight
--   marked: {digest, ceilings: how many of them a repeat is not asked}
-- Returns REPEAT where it was billed, IN_FLIGHT where it has not ended, 0 where this is the first; and how many ceilings
-- are not asked.
local function find_repeat(key, marked, now)
  if tonumber(redis.call('ZSCORE', key, marked.digest) or 0) > now then
    return REPEAT, marked.ceilings
  elseif tonumber(redis.call('ZSCORE', key, 'f' .. marked.digest) or 0) > now then
    return IN_FLIGHT, 0
  end
  return 0, 0
end
