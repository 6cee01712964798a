-- turned: whether a hold slot or the billing period has passed, or the period ends at another time by now.
--   `seen`: the last time seen (ms); `ends`: the end of the counters' period (ms)
local function turned(now, seen, ends)
  local _, finish = period(now)
  return ends ~= finish or seen < now - now % 300000
end
