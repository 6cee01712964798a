#!lua
-- fence_producer: closes a producer for good. Nothing it numbered is applied from now on.
--
-- KEYS[1] string  the producer: the last number applied, or c<number> once it is fenced
-- Reply  the last number applied; -1 where there is no record of the producer: it has applied nothing, or the
--        record was lost
local producer_key = KEYS[1]
local last = redis.call('GET', producer_key) or '-1'
last = string.gsub(last, '^c', '')
redis.call('SET', producer_key, 'c' .. last, 'PX', EIGHT_DAYS_MS)
return tonumber(last)
