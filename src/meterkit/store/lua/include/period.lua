-- period: start and end (ms) of the one that `now` is in, of the two that the caller knows (ARGV[3] to ARGV[5]).
local function period(now)
  local stop = tonumber(ARGV[4])
  if now < stop then
    return ARGV[3], stop
  end
  return ARGV[4], tonumber(ARGV[5])
end
