-- count_recorded: counts what a decision itself records, as included units.
--   fields: the counters' that were read; terms, at: of the first such meter; place: of its field; records: how many
--   words, names: of fields[2] the name is words[names + 2]; write, w: where the fields are put that change
-- Returns w behind all that.
--include unpack_meter
local function count_recorded(fields, terms, at, words, names, place, records, write, w)
  for nth = place, place + records - 1 do
    local name, quantity = words[names + nth], nil
    quantity, at = struct.unpack('<d', terms, at)
    local included, overage, pending, slot, held, held_before, besides = unpack_meter(fields[nth], name)
    write[w + 1], write[w + 2], w = name, cmsgpack.pack(FORM, math.min(included + quantity, MOST), overage, pending, slot,
      held, held_before, besides), w + 2
  end
  return w
end
