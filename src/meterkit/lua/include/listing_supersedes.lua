-- listing_supersedes: decides whether a listing of a bucket replaces the known state of an object's version.
--   known (may be nil), listed: see unpack_object; since_ms: the listing may lack events from this instant on
-- Returns the decision, and whether a newer event contradicts the listing, so that only the next listing can tell.
local function listing_supersedes(known, listed, since_ms)
  local is_there, was_there = listed[1] ~= OBJECT_REMOVED, known and known[1] ~= OBJECT_REMOVED or false
  local is_same = is_there == was_there and (not is_there or listed[2] == known[2] and listed[5] == known[5])
  if known and known[1] ~= OBJECT_LISTED and known[3] >= since_ms then
    return false, not is_same
  end
  return not is_same or not is_there, false -- What is gone, and was so before: its field is not needed any more.
end
