-- pop_subjects: takes the last keys and arguments of a script off, which are of the customer's subjects.
--   keys, words: of the script; count: of the subjects; behind: how many arguments there are after theirs
-- Returns their keys: the index, then a hash each; their words, which are packed as one argument; their terms, another one.
local function pop_subjects(keys, words, count, behind)
  local last, taken = #words - behind, {unpack(keys, #keys - count)}
  local names, terms = {cmsgpack.unpack(words[last - 1])}, words[last]
  for place = last - 1, last + behind do
    words[place] = words[place + 2]
  end
  for place = #keys - count, #keys do
    keys[place] = nil
  end
  return taken, names, terms
end
