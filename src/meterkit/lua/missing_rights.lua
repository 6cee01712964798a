#!lua flags=no-writes
-- missing_rights: which commands this user may not run. None of them is run.
--
-- ARGV  the commands, each: how many words it has, then these
-- Reply  the places of those that are refused, from 1; an error where the server does not tell
local refused, place, i = {}, 0, 1
while i <= #ARGV do
  place = place + 1
  if not redis.acl_check_cmd(unpack(ARGV, i + 1, i + ARGV[i])) then
    refused[#refused + 1] = place
  end
  i = i + 1 + ARGV[i]
end
return refused
