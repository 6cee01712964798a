-- requests_with_room: counts the requests that a policy has room for, at most `requests`.
--   share: each request but the last counts so many times, to leave room for other processes; left: units; needed: units
--   of each request
local function requests_with_room(requests, share, left, needed)
  return left < needed and 0 or math.min(requests, math.floor((left - needed) / (share * needed)) + 1)
end
