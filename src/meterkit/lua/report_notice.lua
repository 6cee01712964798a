#!lua
-- report_notice: queues a notice about a customer for the app's handlers; a process has found it, not a script.
--
-- KEYS[1] stream  notices
-- ARGV  1 the customer   2 the kind of the event   3 what it says (JSON); last: the caller's clock (ms), not asked
-- Reply 1
--include queue_notice
local notices_key = KEYS[1]
local customer, kind, data = unpack(ARGV)
queue_notice(notices_key, customer, kind, data)
return 1
