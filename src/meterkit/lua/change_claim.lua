#!lua
-- change_claim: which customer a Stripe customer belongs to, changed if it is still the claim that was read.
--
-- KEYS[1] string  the claim: the customer, a line feed, and what makes this claim another than all before
-- ARGV  1 the claim that was read, empty for none   2 the next one, empty for none
-- Reply 1 done    0 another process was faster
local claim_key, read, next_claim = KEYS[1], ARGV[1], ARGV[2]
if (redis.call('GET', claim_key) or '') ~= read then
  return 0
elseif next_claim == '' then
  redis.call('DEL', claim_key)
else
  redis.call('SET', claim_key, next_claim)
end
return 1
