#!lua flags=no-writes
-- missing_rights: lists the commands that this user may not run. It runs none of them.
--
-- ARGV  the commands: for each the number of its words, then these words
-- Reply  the positions of refused commands, from 1; an error if the server cannot tell
local refused, place, i = {}, 0, 1
while i <= #ARGV do
  place = place + 1
  if not redis.acl_check_cmd(unpack(ARGV, i + 1, i + ARGV[i])) then
    refused[#refused + 1] = place
  end
  i = i + 1 + ARGV[i]
end
return refused
