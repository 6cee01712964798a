#!lua
-- lease_entries: leases entries to one worker.
--
-- KEYS[1] hash  entries: a Stripe customer to its pending sync (JSON)
-- KEYS[2] zset  due: when the entry is due, or when its lease ends (ms)
-- ARGV  1 the worker's token   2 duration of the lease (ms)   3 entries at most
--       4 the Stripe customer whose entry is leased, due or not; empty: due entries, oldest first
--       last: the caller's clock (ms)
-- Reply {{Stripe customer, entry, 0}, ...}    {Stripe customer} alone: another worker has its entry
--       1 instead of 0: what was queued could not be read, and the entry replaces it
--include server_ms
--include read_entry
local entries_key, due_key = unpack(KEYS)
local token, lease_ms, count_max, customer = unpack(ARGV)
local call, now, reply = redis.call, server_ms(ARGV[#ARGV]), {}
local customers = {customer}
if customer == '' then
  customers = call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, count_max)
end
for _, entry_customer in ipairs(customers) do
  local packed = call('HGET', entries_key, entry_customer)
  local entry = packed and read_entry(packed, now)
  if not entry then
    call('ZREM', due_key, entry_customer)
  elseif entry.token ~= '' and tonumber(call('ZSCORE', due_key, entry_customer)) > now then
    reply[#reply + 1] = {entry_customer}
  else
    local is_damaged = entry.damaged and 1 or 0
    entry.token, entry.damaged = token, nil
    packed = cjson.encode(entry)
    call('HSET', entries_key, entry_customer, packed)
    call('ZADD', due_key, now + lease_ms, entry_customer)
    reply[#reply + 1] = {entry_customer, packed, is_damaged}
  end
end
return reply
