-- free_of: what a credit has left that other holds do not claim, in micro-credits.
--   backed: see backing_of; place: of the meter that is to be paid; with_own: whether its own holds claim, too, where its
--   cost depends on the model; left: of the credit; taken: what is asked of a meter; claim_of(meter, further): the claim of
--   its holds and of further units, and how many of these nothing else covers
-- Returns that, and how many units of its own nothing else covers.
local function free_of(backed, place, with_own, left, taken, claim_of)
  local credit, free, uncovered = backed[place][1], left, 0
  for i, other in ipairs(backed) do
    if other[1] == credit and (i ~= place or with_own and other[7]) then
      local claimed, beyond = claim_of(other, i == place and 0 or taken[i])
      free, uncovered = free - claimed, i == place and beyond or uncovered
    end
  end
  return math.max(0, free), uncovered
end
