#!lua
-- set_level: sets the level of a gauge, or changes it by a quantity.
--
-- KEYS[1] hash  levels: a gauge to its level and its state against the included quantity, packed (see unpack_level)
-- KEYS[2] hash  state
-- KEYS[3] stream  notices
-- KEYS[4] zset  gauges above what is included, see write_level
-- KEYS[5] string  optional: the change counted under an event id of the app, for 35 days; see compare_event
-- ARGV  1 rev    2 when the caller's view expires    3 start and 4 end of the period, 5 end of the next (ms)
--       6 the gauge    7 included in its unit (-1: unlimited)    8 `set` or `adjust`    9 level, or change
--       10 the customer; empty: an anonymous one    11 thresholds: for each the level and its percentage
--       12 the gauge's token    last: the caller's clock (ms)
-- Reply {OK, now, level, 'notice' if there is one}
--       {COUNTED_BEFORE, now, level}  the event id has counted this: nothing is done
--       {STALE, now, rev, state}
--       {OUT_OF_BOUNDS, now, level}  the level would be below 0 or above 10^15 - 1: nothing is done
--       {CHANGED_OTHERWISE, now, level, kept}  the event id has changed this gauge in another way: nothing is done
--       the error DAMAGED        the level is invalid: nothing is done
--include confirm_view
--include unpack_level
--include level_state
--include write_level
--include queue_notices
local levels_key, state_key, notices_key, over_key, event_key = unpack(KEYS)
local rev, until_text, start_text, end_text, next_end_text, gauge, included, change, quantity, customer, thresholds, token, caller = unpack(ARGV)
local call, included_units, caller_ms = redis.call, tonumber(included), tonumber(caller)
-- This script does not read the counters.
local now, period_start_ms, period_end_ms, verdict = confirm_view(state_key, rev, tonumber(until_text), tonumber(start_text), tonumber(end_text),
  tonumber(next_end_text), caller_ms, '', 0, 0, 0, false)
if verdict then
  return verdict
end
local level, over_ms, fitted = unpack_level(call('HGET', levels_key, gauge), gauge)
local remember, counted_reply, _
if event_key then -- Included here, so that other calls do not pay for creating the function.
--include compare_event
  remember, _, counted_reply = compare_event(event_key, {token, change .. ' ' .. quantity}, now)
end
if counted_reply then
  local kept = counted_reply[3]
  return counted_reply[1] == EVENT_CONFLICT and {CHANGED_OTHERWISE, now, level, kept} or {COUNTED_BEFORE, now, level}
end
local new_level = change == 'set' and tonumber(quantity) or level + quantity
if new_level < 0 or new_level > VALUE_MOST then
  return {OUT_OF_BOUNDS, now, level}
end
over_ms, fitted = level_state(level, included_units, over_ms, fitted, now) -- Updated first: the included quantity may have changed.
write_level(levels_key, over_key, gauge, customer, new_level, included_units, over_ms, fitted, now)
if remember then
  remember()
end
local notices = {}
for threshold, percent in string.gmatch(thresholds, '(%d+) (%d+)') do
  if level < tonumber(threshold) and new_level >= tonumber(threshold) then
    notices[#notices + 1] = {'usage.threshold', gauge, new_level, percent, included_units}
  end
end
return {OK, now, new_level, queue_notices(notices_key, customer, notices, now, period_start_ms, period_end_ms)}
