-- free_credit: what a credit has left that other holds do not claim, in micro-credits; below 0 where it is owed.
--   backed: see extend_ceilings; place: of the meter that is to be paid; with_own: whether its own holds claim, too, where its
--   cost depends on the model; left: of the credit; taken: what is asked of a meter; claim_of(meter, further): the claim of
--   its holds and of further units, and how many of these nothing else covers
-- Returns that, and how many units of its own holds the credit pays, where these claim: no fewer than it pays at the
-- highest cost, which stands where it does not pay them all.
local function free_credit(backed, place, with_own, left, taken, claim_of)
  local own, free = backed[place], left
  for i, other in ipairs(backed) do
    if other[1] == own[1] and i ~= place then
      free = free - claim_of(other, taken[i])
    end
  end
  free = math.max(math.min(0, left), free)
  if not with_own or not own[7] then
    return free, 0
  end
  local claimed, beyond = claim_of(own, 0)
  if claimed > free then
    return 0, math.min(beyond, math.floor(free / own[8]))
  end
  return free - claimed, beyond
end
