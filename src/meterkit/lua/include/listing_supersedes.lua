-- listing_supersedes: whether a listing replaces what is known of an object's version.
--   known, listed: as unpack_object gives them, or known nil; since_ms: from when on events may not be in the listing
-- Returns that, and whether an event of meanwhile contradicts the listing, so that only the next one can tell.
local function listing_supersedes(known, listed, since_ms)
  local is_there, was_there = listed[1] ~= OBJECT_REMOVED, known and known[1] ~= OBJECT_REMOVED or false
  local is_same = is_there == was_there and (not is_there or listed[2] == known[2] and listed[5] == known[5])
  if known and known[1] ~= OBJECT_LISTED and known[3] >= since_ms then
    return false, not is_same
  end
  return not is_same or not is_there, false -- What is gone, and was so before: its field is not needed any more.
end
