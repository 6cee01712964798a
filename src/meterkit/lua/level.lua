#!lua
-- level: the level of a gauge is set, or changed by a quantity.
--
-- KEYS[1] hash  levels: a gauge to its level and since when that is above included, packed (see level_of)
-- KEYS[2] hash  state
-- KEYS[3] string  optional: remembers an event id of the app, which counts once in 35 days
-- ARGV  1 rev    2 since when and 3 until when the caller's view of that holds (ms)
--       4 the gauge    5 included in its unit (-1: unlimited)    6 `set` or `adjust`    7 the level, or by how much
--       last: the caller's clock (ms)
-- Reply {0, now, level} done    {1, now, level} the event id has counted before: nothing is done
--       {2, now, rev, state} stale    {3, now} clock
--       {4, now, level} the level would be below 0 or above 10^15 - 1: nothing is done
--       the error DAMAGED        the level is not what it must be: nothing is done
--include confirm_view
--include level_of
--include over_since
local levels_key, state_key, event_key = unpack(KEYS)
local rev, from, till, gauge, included, change, quantity, caller = unpack(ARGV)
local call, from_ms, till_ms, caller_ms = redis.call, tonumber(from), tonumber(till), tonumber(caller)
-- Of the counters nothing is known here, and the period does not matter.
local now, _, _, verdict = confirm_view(state_key, rev, till_ms, from_ms, till_ms, till_ms, caller_ms, '', 0, 0, false)
if verdict then
  return verdict
end
local level, over_ms = level_of(call('HGET', levels_key, gauge), gauge)
if event_key and call('EXISTS', event_key) == 1 then
  return {1, now, level}
end
local changed = change == 'set' and tonumber(quantity) or level + quantity
if changed < 0 or changed > VALUE_MOST then
  return {4, now, level}
end
if changed == 0 then
  call('HDEL', levels_key, gauge)
else
  call('HSET', levels_key, gauge, cmsgpack.pack(FORM, changed, over_since(changed, tonumber(included), over_ms, now)))
end
if event_key then
  call('SET', event_key, 1, 'PX', THIRTY_FIVE_DAYS_MS)
end
return {0, now, changed}
