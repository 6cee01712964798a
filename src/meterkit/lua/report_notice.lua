#!lua
-- report_notice: queues a notice about a customer for the app's handlers, on behalf of a process.
--
-- KEYS[1] stream  notices
-- ARGV  1 the customer   2 kind of the event   3 data (JSON)    last: the caller's clock (ms), not used
-- Reply 1
--include queue_notice
local notices_key = KEYS[1]
local customer, kind, data = unpack(ARGV)
queue_notice(notices_key, customer, kind, data)
return 1
