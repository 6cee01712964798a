-- write_level: writes the level of a gauge, and lists the gauge while its level is above what is included.
--   levels_key: hash; over_key: zset of GAUGE:CUSTOMER, by since when; customer: empty: an anonymous one, never listed
--   included: -1: unlimited; over_ms, fitted: what was known of the level before
--include level_state
local function write_level(levels_key, over_key, gauge, customer, level, included, over_ms, fitted, now)
  over_ms, fitted = level_state(level, included, over_ms, fitted, now)
  if level > 0 then
    redis.call('HSET', levels_key, gauge, cmsgpack.pack(FORM, level, over_ms, fitted))
  else
    redis.call('HDEL', levels_key, gauge)
  end
  if over_ms == 0 then
    redis.call('ZREM', over_key, gauge .. ':' .. customer)
  elseif customer ~= '' then
    redis.call('ZADD', over_key, over_ms, gauge .. ':' .. customer)
  end
end
