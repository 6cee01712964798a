#!lua
-- claim: which customer a Stripe customer belongs to, changed if it is still the claim that was read.
--
-- KEYS[1] string  the claim: the customer, a line feed, and what makes this claim another than all before
-- ARGV  1 the claim that was read, empty for none   2 the next one, empty for none
-- Reply 1 done    0 somebody else was faster
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
elseif ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
return 1
