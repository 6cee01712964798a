-- period: start and end (ms) of the one that `now` is in, of the two that the caller knows (terms[2] to terms[4]).
local function period(now)
  if now < terms[3] then
    return terms[2], terms[3]
  end
  return terms[3], terms[4]
end
