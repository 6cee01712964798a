#!lua
-- finish_entry: records the outcome of a leased entry, unless another worker has leased it meanwhile.
--
-- KEYS[1] hash  entries: a Stripe customer to its pending sync (JSON)
-- KEYS[2] zset  due: when the entry is due, or when its lease ends (ms)    KEYS[3] hash  dead entries
-- ARGV  1 the Stripe customer   2 the worker's token
--       3 outcome: done, later, dead; or kept: the worker needs more time
--       4 done, dead: number of hints when the entry was leased
--       5 later, kept: delay (ms)   6 later: 1: it counts as an attempt; else 0   7 later, dead: reason
--       8... names of its notes that are done    last: the caller's clock (ms)
-- If hints came while the worker had the entry, it is neither done nor dead, but due at once.
-- Reply 1 done    0 the entry is gone, or another worker has it: nothing is done; or it is not dead
--include server_ms
--include read_entry
local entries_key, due_key, dead_key = unpack(KEYS)
local customer, token, outcome, hint_count, span_ms, added_attempts, why = unpack(ARGV)
local first_note = 8 -- Among the arguments.
local call, now = redis.call, server_ms(ARGV[#ARGV])
local packed = call('HGET', entries_key, customer)
local entry = packed and read_entry(packed, now)
if not entry or entry.token ~= token then
  return 0
end
if outcome == 'kept' then
  call('ZADD', due_key, now + span_ms, customer)
  return 1
end
for i = first_note, #ARGV - 1 do
  if entry.notes[ARGV[i]] then
    entry.notes[ARGV[i]], entry.noted = nil, entry.noted - 1
  end
end
entry.token, entry.why = '', why
if outcome ~= 'later' and entry.n == tonumber(hint_count) then
  if outcome == 'dead' then
    entry.at = now
    call('HSET', dead_key, customer, cjson.encode(entry))
  end
  call('HDEL', entries_key, customer)
  call('ZREM', due_key, customer)
  return 1
end
entry.attempts = outcome == 'later' and entry.attempts + added_attempts or 0
call('HSET', entries_key, customer, cjson.encode(entry))
call('ZADD', due_key, outcome == 'later' and now + span_ms or now, customer)
return outcome == 'dead' and 0 or 1
