-- take_subjects: takes the last keys and arguments of a script off, which are of the customer's subjects.
--   keys, words: of the script; count: of the subjects; behind: how many arguments there are after their terms
-- Of the keys these are the index, then a hash each; of the arguments the subjects' words, then their terms, which begin
-- with how many words there are.
-- Returns {keys, words, terms, at: where the terms go on}.
local function take_subjects(keys, words, count, behind)
  local last = #words - behind
  local terms = words[last]
  local width, at = struct.unpack('<d', terms)
  local taken = {keys = {unpack(keys, #keys - count)}, words = {unpack(words, last - width, last - 1)}}
  taken.terms, taken.at = terms, at
  for place = last - width, last + behind do
    words[place] = words[place + width + 1]
  end
  for place = #keys, #keys - count, -1 do
    keys[place] = nil
  end
  return taken
end
