#!lua
-- move_grants: ends the recurring grants of a period whose bounds have moved. They are not granted in it again.
--
-- KEYS[1] hash  grants    KEYS[2] hash  their ledger
-- ARGV  1 a JSON array: {name, new expiry (ms), when it leaves the hash (ms, as text), name under which it would be granted
--       again (empty: none)} for each grant    last: the caller's clock (ms)
-- A name under which a grant would be granted again is stored as used up, without a ledger entry.
-- Reply  the number of ended grants
--include parse_grant
--include format_grant
local grants_key, ledger_key, asked = KEYS[1], KEYS[2], ARGV[1]
local call, found = redis.call, 0
for _, one in ipairs(cjson.decode(asked)) do
  local name, expires_ms, until_ms, given_as = unpack(one)
  local text = call('HGET', grants_key, name)
  if text then
    local grant = parse_grant(name, text)
    grant.expires, grant.until_ms, found = tonumber(expires_ms), tonumber(until_ms), found + 1
    call('HSET', grants_key, name, format_grant(grant))
    if given_as ~= '' and not call('HGET', grants_key, given_as) then
      grant.used = grant.quantity
      local terms = string.format('%.0f %.0f %.0f %.0f', grant.priority, grant.effective, grant.expires, grant.created)
      call('HSET', grants_key, given_as, format_grant(grant))
      call('HSETNX', ledger_key, 'grant ' .. given_as, '0 ' .. terms)
    end
  end
end
if found > 0 then
  call('HDEL', grants_key, 'balance')
end
return found
