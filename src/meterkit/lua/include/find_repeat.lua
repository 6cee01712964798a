-- find_repeat: finds the state of the first request with an idempotency key: billed, in flight, or none.
--   key: zset of digests of idempotency keys; score: until when the key counts as billed (ms). f DIGEST: as in flight
--   options: digest; ceilings: how many of them do not apply to a repeat
-- Returns REPEAT where the first request was billed, IN_FLIGHT where it has not ended, ALLOWED where this is the first
-- one; and how many ceilings do not apply.
local function find_repeat(key, options, now)
  if tonumber(redis.call('ZSCORE', key, options.digest) or 0) > now then
    return REPEAT, options.ceilings
  elseif tonumber(redis.call('ZSCORE', key, 'f' .. options.digest) or 0) > now then
    return IN_FLIGHT, 0
  end
  return ALLOWED, 0
end
