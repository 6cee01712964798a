-- standing: what every script asks before it touches a customer's counters.
--   `rev`, `seen`, `ends`: read from the counters; ARGV[1] the caller's rev, terms[1] until when its view holds
--   (ms), terms[2] since when, ARGV[#ARGV] its clock (ms)
-- Returns now (ms, never before `seen`), then nil or the reply that ends the script:
--   {2, now, rev, state} the caller's view is stale;  {3, now} the clocks differ too much to go on
local function standing(rev, seen, ends, forced)
  local wall = wall_ms()
  local now = seen > wall and seen or wall
  local outside = now >= terms[1] or now < terms[2]
  if (outside or rev ~= ARGV[1]) and not forced then
    local state = redis.call('HMGET', KEYS[2], 'rev', 'data')
    local current = state[1] or '1:0'
    if outside or current ~= ARGV[1] then
      return now, {2, now, current, state[2] or ''}
    end
  end
  if (wall - seen > 60000 or (ends and now >= ends)) and math.abs(wall - ARGV[#ARGV]) > 60000 then
    return now, {3, now}
  end
  return now, nil
end
