-- read_counters: all that counters say of the customer and of meters, where every number of it is whole.
-- Returns the head {seen_ms, begins_ms, ends_ms, expires_ms, rev}, nil where there is none; and by its token each
-- meter's numbers, as read_meter gives them; or nil, nil, and the name of the damaged field, or of the key that is no
-- hash.
--include unpack_head
--include read_meter
local function read_counters(key)
  local list, head, meters = redis.pcall('HGETALL', key), nil, {}
  if list.err then
    return nil, nil, key
  end
  for i = 1, #list, 2 do
    local name, packed = list[i], list[i + 1]
    local token = string.match(name, '^(....)m$')
    if token then
      meters[token] = read_meter(packed)
      if not meters[token] then
        return nil, nil, name
      end
    elseif name == 'h' then
      local is_read, seen_ms, begins_ms, ends_ms, expires_ms, rev = pcall(unpack_head, packed)
      if not is_read or not are_whole_numbers(seen_ms, begins_ms, ends_ms, expires_ms) then
        return nil, nil, name
      end
      head = {seen_ms = seen_ms, begins_ms = begins_ms, ends_ms = ends_ms, expires_ms = expires_ms, rev = rev}
    end
  end
  return head, meters, nil
end
