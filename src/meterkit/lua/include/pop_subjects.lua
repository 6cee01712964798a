-- pop_subjects: removes the last keys and arguments of a script, those of the customer's subjects, and returns them.
--   keys, words: of the script; count: of the subjects; behind: how many arguments follow theirs
-- Returns their keys: the index, then a hash each; their words, which are packed as one argument; and their terms.
local function pop_subjects(keys, words, count, behind)
  local last = #words - behind
  local subject_keys = {unpack(keys, #keys - count)}
  local subject_terms = table.remove(words, last)
  local subject_words = {cmsgpack.unpack(table.remove(words, last - 1))}
  for place = #keys - count, #keys do
    keys[place] = nil
  end
  return subject_keys, subject_words, subject_terms
end
