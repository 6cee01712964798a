-- level_notices: the notices of a changed level: percentages of what is included that it reaches, and that stored bytes pass
-- what is included.
--   included: -1: unlimited; thresholds: a level and the percentage that it is, each
--   over: of stored bytes, what is tolerated above what is included, and for how long (ms); else empty
-- Returns them; see notify.
local function level_notices(gauge, level, changed, included, thresholds, over, now)
  local notices = {}
  for threshold, percent in string.gmatch(thresholds, '(%d+) (%d+)') do
    if level < tonumber(threshold) and changed >= tonumber(threshold) then
      notices[#notices + 1] = {'usage.threshold', gauge, changed, percent, included}
    end
  end
  local tolerated, grace_ms = string.match(over, '(%d+) (%d+)')
  if tolerated and level <= included and changed > included then
    notices[#notices + 1] = {'storage.over', gauge, changed, included, tolerated, now + grace_ms}
  end
  return notices
end
