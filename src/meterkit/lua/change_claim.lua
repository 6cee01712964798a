#!lua
-- change_claim: changes the claim of a Stripe customer, if it is still the one that was read.
--
-- KEYS[1] string  the claim: the customer, a line feed, and a text that makes it different from all earlier claims
-- ARGV  1 the claim that was read; empty: none   2 the new one; empty: none
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
