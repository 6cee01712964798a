-- expire_at: when a key expires (ms); NEVER_MS: it does not.
local function expire_at(key, lives_ms)
  if lives_ms == NEVER_MS then
    redis.call('PERSIST', key)
  else
    redis.call('PEXPIREAT', key, lives_ms)
  end
end
