#!lua
-- record_objects: sets the level of a gauge, and its levels by type, to the sum of a customer's stored objects, by events of
-- a bucket or a listing of it. Repeated, late and reordered events do not change what a newer event has reported.
--
-- KEYS[1] hash  levels: a gauge, `GAUGE:` (the sum of what is stored) and `GAUGE:TYPE`, packed (see unpack_level)
-- KEYS[2] hash  state    KEYS[3] stream  notices
-- KEYS[4] hash  objects: an object's version to its known state, packed (see unpack_object); a bucket to its last
--               listing: the instants before which it has all events, and from which it has none (ms)
-- KEYS[5] zset  customers whose bucket must be listed again, by when that was last found (ms)
-- KEYS[6] list  ledger of changes: the corrections by listings, the sum of those of 24 hours in one line if they are its
--               last: two levels that differ by the sum, the level now unless that makes the one before less than 0
-- KEYS[7] and KEYS[8] hash  presigned uploads of the last hour and of this one (see hold_upload.lua)
-- KEYS[9] zset  gauges above what is included, see write_level
-- ARGV  1 rev    2 when the caller's view expires    3 start and 4 end of the period, 5 end of the next (ms)
--       6 the gauge    7 included in its unit (-1: unlimited)    8 the customer
--       9 thresholds: for each the level and its percentage    10 the bucket
--       11 and 12 the two instants of a listing, see KEYS[4]; both empty: these are events
--       13 `relist`: events have shown that only a listing helps; else empty
--       from 14 on, for each change: field, `removed` (0) or `stored` (1), size, time (ms), sequencer, type, whether the
--       version is written only once (0, 1), digest of the key if an event stores the object, else empty
--       last: the caller's clock (ms)
-- Reply {OK, now, level, change of the sum, whether to list again (0, 1), 'notice' if there is one}
--       {STALE, now, rev, state}
--       {OUT_OF_BOUNDS, now, level}  the level would be above 10^15 - 1: nothing is done
--       the error DAMAGED        a level or an object is invalid: nothing is done
--include confirm_view
--include unpack_level
--include level_state
--include write_level
--include unpack_object
--include event_supersedes
--include listing_supersedes
--include unpack_presigned
--include settle_presigned
--include append_history
--include queue_notices
local levels_key, state_key, notices_key, objects_key, relist_key, history_key, last_hour_key, this_hour_key, over_key =
  unpack(KEYS)
local rev, until_text, start_text, end_text, next_end_text, gauge, included, customer, thresholds, bucket = unpack(ARGV, 1, 10)
local listed_since, listed_until, relist = unpack(ARGV, 11, 13)
local call, most, caller_ms = redis.call, tonumber(included), tonumber(ARGV[#ARGV])
local now, period_start_ms, period_end_ms, verdict = confirm_view(state_key, rev, tonumber(until_text), tonumber(start_text), tonumber(end_text),
  tonumber(next_end_text), caller_ms, '', 0, 0, 0, false)
if verdict then
  return verdict
end
local is_listing = listed_since ~= ''
local form, since_ms, sure_ms, more = cmsgpack.unpack(call('HGET', objects_key, bucket) or EMPTY_LISTING)
if form ~= FORM or not sure_ms or more then
  error('DAMAGED object ' .. bucket)
end
if is_listing then
  since_ms, sure_ms = math.max(since_ms, tonumber(listed_since)), math.max(sure_ms, tonumber(listed_until))
end
local found, moved, is_unclear = {}, {}, relist ~= ''
for at = 14, #ARGV - 1, 8 do
  local field, of_type = ARGV[at], ARGV[at + 5]
  local known = found[field]
  if known == nil then
    known = unpack_object(call('HGET', objects_key, field), field)
  end
  local reported = {tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4], of_type}
  local applies, doubts = true, false
  if is_listing then
    applies, doubts = listing_supersedes(known, reported, since_ms)
    reported[1] = reported[1] == OBJECT_STORED and OBJECT_LISTED or reported[1]
  elseif reported[3] < since_ms then -- The last listing has it.
    applies = false
  elseif known then
    applies, doubts = event_supersedes(known, reported, ARGV[at + 6] == '1')
  end
  if applies then
    local size_before = known and known[2] or 0 -- What is removed has 0 bytes.
    doubts = doubts or not is_listing and reported[3] < sure_ms and size_before ~= reported[2]
    if size_before > 0 then
      moved[known[5]] = (moved[known[5]] or 0) - size_before
    end
    moved[of_type] = (moved[of_type] or 0) + reported[2]
    found[field] = reported
  end
  is_unclear = is_unclear or doubts
end
local stored_sum, change, by_type = unpack_level(call('HGET', levels_key, gauge .. ':'), gauge), 0, {}
for of_type, by in pairs(moved) do
  local name = gauge .. ':' .. of_type
  by_type[name] = unpack_level(call('HGET', levels_key, name), name) + by
  change = change + by
end
local level, over_ms, fitted = unpack_level(call('HGET', levels_key, gauge), gauge)
local new_level = stored_sum + change
local current_slot = math.floor(now / HOLD_SLOT_MS)
unpack_presigned(call('HGET', levels_key, gauge .. '+'), gauge, current_slot)
if new_level > VALUE_MOST then
  return {OUT_OF_BOUNDS, now, level}
end
local function write_sum(name, quantity)
  if quantity > 0 then
    call('HSET', levels_key, name, cmsgpack.pack(FORM, quantity, 0, 0))
  else
    call('HDEL', levels_key, name)
  end
end
for name, quantity in pairs(by_type) do
  write_sum(name, quantity)
end
write_sum(gauge .. ':', new_level)
over_ms, fitted = level_state(level, most, over_ms, fitted, now)
write_level(levels_key, over_key, gauge, customer, new_level, most, over_ms, fitted, now)
for field, reported in pairs(found) do
  if is_listing and reported[1] == OBJECT_REMOVED then
    call('HDEL', objects_key, field)
  else
    call('HSET', objects_key, field, cmsgpack.pack(FORM, unpack(reported)))
  end
end
for at = 14, #ARGV - 1, 8 do
  local upload, sequencer, at_ms = ARGV[at + 7], ARGV[at + 4], ARGV[at + 3]
  if upload ~= '' then
    settle_presigned({last_hour_key, this_hour_key}, levels_key, gauge, upload, tonumber(ARGV[at + 2]), tonumber(at_ms),
      ARGV[at] .. (sequencer ~= '' and sequencer or at_ms), current_slot)
  end
end
if is_listing then
  call('HSET', objects_key, bucket, cmsgpack.pack(FORM, since_ms, sure_ms))
end
if new_level > 0 then
  call('PERSIST', objects_key)
elseif call('PTTL', objects_key) == -1 then -- Nothing is stored: only events that come late need what is known.
  call('PEXPIRE', objects_key, SEVEN_DAYS_MS)
end
if is_listing and new_level ~= level then -- One line a day: the ledger keeps a thousand, and has other changes.
  local began, corrected = string.format('%.0f', now), new_level - level
  local last = cjson.decode(call('LRANGE', history_key, -1, -1)[1] or '[]')
  if last[1] == 'storage' and tonumber(last[2]) > now - DAY_MS then
    call('LTRIM', history_key, 0, -2)
    began = last[2]
    corrected = corrected + string.match(last[4], '%d+') - string.match(last[3], '%d+')
  end
  local before = math.max(new_level - corrected, 0)
  append_history(history_key, {{'storage', began, string.format('%.0f bytes', before),
    string.format('%.0f bytes', before + corrected), 'recalculation'}})
end
if is_unclear then
  call('ZADD', relist_key, now, customer)
  call('PEXPIRE', relist_key, SEVEN_DAYS_MS)
end
local notices = {}
for threshold, percent in string.gmatch(thresholds, '(%d+) (%d+)') do
  if level < tonumber(threshold) and new_level >= tonumber(threshold) then
    notices[#notices + 1] = {'usage.threshold', gauge, new_level, percent, most}
  end
end
return {OK, now, new_level, change, is_unclear and 1 or 0, queue_notices(notices_key, customer, notices, now, period_start_ms, period_end_ms)}
