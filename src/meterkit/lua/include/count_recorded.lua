-- count_recorded: counts what a decision itself records, as included units.
--   fields, words, name_offset: what was read of the counters; the name of fields[place] is words[name_offset + place]
--   terms, at: the recorded meters in the terms, see decide; first: place of the first one's field; count: how many
--   hset, hset_count: arguments of the HSET of all changed fields, and how many there are
-- Returns hset_count.
--include unpack_meter
local function count_recorded(fields, terms, at, words, name_offset, first, count, hset, hset_count)
  for place = first, first + count - 1 do
    local name, quantity = words[name_offset + place], nil
    quantity, at = struct.unpack('<d', terms, at)
    local included, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], name)
    included = math.min(included + quantity, MOST)
    hset[hset_count + 1] = name
    hset[hset_count + 2] = cmsgpack.pack(FORM, included, overage, pending, slot, held, held_before, extras)
    hset_count = hset_count + 2
  end
  return hset_count
end
