-- event_supersedes: decides whether an event is newer than the known state of an object's version.
--   known, event: {removed, stored or listed; size; time (ms); sequencer} each; is_single: whether the version is written
--   once and removed once
-- Returns the decision, and whether only a listing of the bucket can tell for sure.
local function event_supersedes(known, event, is_single)
  local kind, size, at_ms, sequencer = unpack(event)
  if is_single then
    return kind == OBJECT_REMOVED and known[1] ~= OBJECT_REMOVED, false
  elseif known[1] == OBJECT_LISTED then -- The caller has left out what happened before the listing.
    return true, false
  end
  local is_same = kind == known[1] and size == known[2]
  if sequencer ~= '' and sequencer == known[4] then
    if kind ~= known[1] then -- MinIO numbers a removal like the object that it removes.
      return kind == OBJECT_REMOVED, false
    end
    return at_ms > known[3] and not is_same, not is_same
  elseif sequencer ~= '' and #sequencer == #known[4] then
    return sequencer > known[4], false
  elseif at_ms ~= known[3] then
    return at_ms > known[3], true
  end
  -- Right-padded with zeros, as AWS's page on the structure of these messages says.
  local most = math.max(#sequencer, #known[4])
  local left = sequencer .. string.rep('0', most - #sequencer)
  local right = known[4] .. string.rep('0', most - #known[4])
  return left > right or left == right and kind == OBJECT_REMOVED and not is_same, not is_same or left ~= right
end
