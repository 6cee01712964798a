#!lua
-- queue_sync: queues a sync of a Stripe customer: once per event, in one entry for all events.
--
-- KEYS[1] hash  entries: a Stripe customer to its pending sync (JSON)
-- KEYS[2] zset  due: when the entry is due, or when its lease ends (ms)
-- KEYS[3] hash  dead entries          KEYS[4] hash  alarms: the number of each kind, for 400 days
-- KEYS[5] string  the event, for 35 days    KEYS[6] string  the note, for 35 days
-- ARGV  1 the Stripe customer; empty: none   2 the cause: the event's id, or a word
--       3 1: an event, which counts once; 0: none   4 the kind of an alarm, or empty
--       5 the note's name, or empty   6 the note   7 delay until it is due (ms)   last: the caller's clock (ms)
-- A dead entry restarts with its first attempt. A leased entry, or one that waits for a retry, keeps its time.
-- Reply SYNC_QUEUED
--       SYNC_REPEATED   the event was queued before: nothing is done
--       SYNC_NO_ROOM    the sync is queued, but there is no room for the note
--include server_ms
--include read_entry
local entries_key, due_key, dead_key, alarms_key, event_key, note_key = unpack(KEYS)
local customer, cause, is_event, alarm, name, note, delay_ms = unpack(ARGV)
local call = redis.call

local function is_first(key)
  return call('SET', key, '1', 'PX', THIRTY_FIVE_DAYS_MS, 'NX') and true or false
end

if is_event == '1' and not is_first(event_key) then
  return SYNC_REPEATED
end
if alarm ~= '' then
  call('HINCRBY', alarms_key, alarm, 1)
  call('PEXPIRE', alarms_key, FOUR_HUNDRED_DAYS_MS)
end
if customer == '' then
  return SYNC_QUEUED
end
local now, reply = server_ms(ARGV[#ARGV]), SYNC_QUEUED
local packed = call('HGET', entries_key, customer)
local entry
if packed then
  entry = read_entry(packed, now)
else
  local given_up = call('HGET', dead_key, customer)
  local dead = given_up and read_entry(given_up, now) or {notes = {}}
  entry = {n = 0, since = now, noted = 0, notes = dead.notes, damaged = dead.damaged}
  for _ in pairs(entry.notes) do
    entry.noted = entry.noted + 1
  end
  entry.attempts, entry.token, entry.why = 0, '', ''
  call('HDEL', dead_key, customer)
end
entry.n, entry.cause = entry.n + 1, cause
if name ~= '' and entry.noted >= HINTS_MOST then
  reply = SYNC_NO_ROOM
elseif name ~= '' and is_first(note_key) then
  entry.notes[name], entry.noted = note, entry.noted + 1
end
call('HSET', entries_key, customer, cjson.encode(entry))
if entry.token == '' and entry.attempts == 0 then
  call('ZADD', due_key, 'LT', now + delay_ms, customer)
end
return reply
