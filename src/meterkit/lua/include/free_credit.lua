-- free_credit: what is left of a credit that other holds do not claim, in micro-credits; below 0 where it is owed.
--   backed: see extend_ceilings; place: of the meter to be paid; with_own: whether its own holds claim the credit, too,
--   where its cost depends on the model; left: of the credit; taken: quantity needed of each meter
--   claim_of(meter, more_units): what its holds and more units claim, and how many of these nothing else covers
-- Returns that, and how many units of its own holds the credit pays where these claim it: at least as many as it pays at
-- the highest cost, which counts where it does not pay them all.
local function free_credit(backed, place, with_own, left, taken, claim_of)
  local own, free = backed[place], left
  local own_credit, _, _, _, _, _, cost_place, highest_cost = unpack(own)
  for i, other in ipairs(backed) do
    if other[1] == own_credit and i ~= place then
      free = free - claim_of(other, taken[i])
    end
  end
  free = math.max(math.min(0, left), free)
  if not with_own or not cost_place then
    return free, 0
  end
  local claimed, uncovered = claim_of(own, 0)
  if claimed > free then
    return 0, math.min(uncovered, math.floor(free / highest_cost))
  end
  return free - claimed, uncovered
end
