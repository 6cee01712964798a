-- requests_with_room: the number of requests that a policy has room for, at most `requests`.
--   share: how many times what the others need must be left when the last of them is admitted; left; needed: by each
local function requests_with_room(requests, share, left, needed)
  return left < needed and 0 or math.min(requests, math.floor((left - needed) / (share * needed)) + 1)
end
