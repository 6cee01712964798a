-- dry_run: what a script that is to be tried calls in place of `redis`, and a function by which it writes nothing from then on.
-- What is not written is not read again either.
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
