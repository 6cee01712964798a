-- settle_subjects: what a request came to for the subjects of its customer: gives back their holds, counts their units.
--   keys: as pop_subjects gives them; words: a subject each, its member of the index, then its fields
--   terms: a subject each, how many meters with concurrency limits, rates, and how many of these, the last, count what is
--   spent; then recorded, held a meter; kind, window, refill, quantity, when it was counted a rate; see settle
--   begins_ms, ends_ms: of the customer's period; hold_slot: of the holds; is_counted: whether it is recorded
-- Returns nil, or the word for one that was not kept; see write_subject.
--include unpack_meter
--include release_hold
--include correct_rate
--include write_subject
local function settle_subjects(keys, words, terms, begins_ms, ends_ms, hold_slot, is_counted, now)
  local read, pack, current_slot, has_room, behind, at = struct.unpack, cmsgpack.pack, math.floor(now / HOLD_SLOT_MS), true, 1, 1
  for nth = 2, #keys do
    local meters, rates, spans
    meters, rates, spans, at = read('<ddd', terms, at)
    local key, ends, longest_ms = keys[nth], 0, 0
    local fields = redis.call('HMGET', key, 'h', unpack(words, behind + 1, behind + meters + rates))
    local write, w = {key, nil, nil, nil, nil, nil, nil}, 1 -- With place: growing copies a table.
    for place = 2, meters + 1 do
      local name, quantity, asked = words[behind + place - 1], nil, nil
      quantity, asked, at = read('<dd', terms, at)
      local counted, _, period, slot, held, held_before = unpack_meter(fields[place], name)
      held, held_before = release_hold(hold_slot, asked, current_slot, slot, held, held_before)
      counted, quantity = period == begins_ms and counted or 0, is_counted and quantity or 0
      ends = quantity > 0 and ends_ms or ends
      write[w + 1], write[w + 2], w = name,
        pack(FORM, math.min(counted + quantity, MOST), 0, begins_ms, current_slot, held, held_before, ''), w + 2
    end
    for place = meters + 2, meters + rates + 1 do
      local name, kind, window, refill, quantity, counted_ms = words[behind + place - 1], nil, nil, nil, nil, nil
      kind, window, refill, quantity, counted_ms, at = read('<ddddd', terms, at)
      quantity = (is_counted or place <= meters + rates + 1 - spans) and quantity or 0
      local packed, matters_ms = correct_rate(fields[place], name, kind, window, refill, quantity, counted_ms, now)
      longest_ms = math.max(longest_ms, matters_ms)
      write[w + 1], write[w + 2], w = name, packed, w + 2
    end
    has_room = write_subject(keys[1], now, words[behind], write, w, fields[1],
      QUARTER_HOUR_MS + math.max(ends, now + longest_ms), math.floor(longest_ms / 8)) and has_room
    behind = behind + meters + rates + 1
  end
  return not has_room and 'subjects' or nil
end
