#!lua
-- lease_notices: leases notices to handlers of some kinds: first unacknowledged ones whose lease is over, then new ones.
--
-- KEYS[1] stream  notices
-- ARGV  1 duration of a lease (ms)   2 notices of a kind at most   3... kinds    last: the caller's clock (ms)
--       `GROUP KIND` leases a kind to another consumer group, which is independent of the handlers.
-- Reply {{kind or `GROUP KIND`, id, number of leases, {field, value, ...}}, ...}
local key, again_ms, most, call = KEYS[1], ARGV[1], ARGV[2], redis.call
local reply = {}
if call('EXISTS', key) == 0 then
  return reply
end
local groups = {}
for _, group in ipairs(call('XINFO', 'GROUPS', key)) do
  groups[group[2]] = true -- {'name', its name, ...}
end
for i = 3, #ARGV - 1 do
  local group, kind, left = ARGV[i], string.match(ARGV[i], '%S+$'), tonumber(most)
  local function give(id, times, entry)
    if entry[2] == kind then -- {'kind', its kind, ...}
      reply[#reply + 1], left = {group, id, times, entry}, left - 1
    else
      call('XACK', key, group, id)
    end
  end
  if not groups[group] then
    call('XGROUP', 'CREATE', key, group, '0')
  end
  for _, waiting in ipairs(call('XPENDING', key, group, 'IDLE', again_ms, '-', '+', most)) do
    local claimed = call('XCLAIM', key, group, CONSUMER, again_ms, waiting[1])
    if claimed[1] then
      give(claimed[1][1], waiting[4] + 1, claimed[1][2])
    else
      call('XACK', key, group, waiting[1]) -- There was no room for it any more.
    end
  end
  while left > 0 do
    local new = call('XREADGROUP', 'GROUP', group, CONSUMER, 'COUNT', left, 'STREAMS', key, '>')
    if not new or not new[1] then
      break
    end
    for _, entry in ipairs(new[1][2] or new[2]) do -- fakeredis leaves out the outer list.
      give(entry[1], 1, entry[2])
    end
  end
end
return reply
