#!lua
-- lease_entries: leases entries to one worker for a while.
--
-- KEYS[1] hash  entries: a Stripe customer to what is to be done (JSON)
-- KEYS[2] zset  due: when (ms), or until when a worker has the entry
-- ARGV  1 the worker's token   2 for how long (ms)   3 how many at most
--       4 the Stripe customer whose entry is given, whenever it is due; empty: whatever is due, the longest first
--       last: the caller's clock (ms)
-- Reply {{Stripe customer, entry}, ...}    {Stripe customer} alone: another worker has its entry
--include server_ms
local entries_key, due_key = unpack(KEYS)
local token, lease_ms, most, customer = unpack(ARGV)
local call, now, reply = redis.call, server_ms(ARGV[#ARGV]), {}
local names = {customer}
if customer == '' then
  names = call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, most)
end
for _, name in ipairs(names) do
  local kept = call('HGET', entries_key, name)
  local entry = kept and cjson.decode(kept)
  if not entry then
    call('ZREM', due_key, name)
  elseif entry.token ~= '' and tonumber(call('ZSCORE', due_key, name)) > now then
    reply[#reply + 1] = {name}
  else
    entry.token = token
    kept = cjson.encode(entry)
    call('HSET', entries_key, name, kept)
    call('ZADD', due_key, now + lease_ms, name)
    reply[#reply + 1] = {name, kept}
  end
end
return reply
