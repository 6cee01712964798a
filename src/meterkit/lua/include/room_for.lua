-- room_for: for how many requests a policy has room, and no more than `requests`.
--   share: how many times what the others need must be left when the last of them is admitted; left; needed: by each
local function room_for(requests, share, left, needed)
  return left < needed and 0 or math.min(requests, math.floor((left - needed) / (share * needed)) + 1)
end
