-- expire_at: when a key expires (ms); NEVER_MS: it does not.
local function expire_at(key, expires_ms)
  if expires_ms == NEVER_MS then
    redis.call('PERSIST', key)
  else
    redis.call('PEXPIREAT', key, expires_ms)
  end
end
