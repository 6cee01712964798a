-- server_ms: the server's clock in milliseconds.
--   the caller's clock (ms) is taken in its place where a test sets it
local function server_ms(_)
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
