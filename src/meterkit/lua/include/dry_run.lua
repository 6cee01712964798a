-- dry_run: makes a stand-in for `redis`, and a function that stops its writes: from then on, the script only reads.
-- The script must not read again what it would have written.
local function dry_run()
  local writes = true
  local calls = setmetatable({call = function(command, ...)
    if writes or command == 'GET' or command == 'HGET' or command == 'HMGET' or command == 'HGETALL' then
      return redis.call(command, ...)
    end
    return 0
  end}, {__index = redis})
  return calls, function()
    writes = false
  end
end
