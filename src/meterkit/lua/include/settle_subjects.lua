-- settle_subjects: settles a request for the subjects of its customer: releases their holds, counts their units.
--   keys: as pop_subjects returns them; words: of each subject its member of the index, then its fields
--   terms: of each subject numbers of its meters and concurrency limits, of its rates, and how many of these, the last ones,
--   count what is spent; then recorded, held of each meter; kind, window, refill, quantity, when it was counted of each
--   rate; see settle
--   begins_ms, ends_ms: of the customer's period; hold_slot: in which the request holds; is_recorded: whether it is recorded
-- Writes nothing itself, so that a damaged field ends the script before anything is written. Returns write_subjects(),
-- which returns nil, or the word of the reply if a subject was not stored; see write_subject.
--include unpack_meter
--include release_hold
--include correct_rates
--include unpack_life
--include write_subject
local function settle_subjects(keys, words, terms, begins_ms, ends_ms, hold_slot, is_recorded, now)
  local read, pack, current_slot = struct.unpack, cmsgpack.pack, math.floor(now / HOLD_SLOT_MS)
  local changed, behind, at = {}, 1, 1
  for nth = 2, #keys do
    local meter_count, rate_count, spend_rate_count
    meter_count, rate_count, spend_rate_count, at = read('<ddd', terms, at)
    local key, lives_ms = keys[nth], 0
    local fields = redis.call('HMGET', key, 'h', unpack(words, behind + 1, behind + meter_count + rate_count))
    local hset, hset_count = {key, nil, nil, nil, nil, nil, nil}, 1 -- With room: growing a table copies it.
    for place = 2, meter_count + 1 do
      local name, quantity, released = words[behind + place - 1], nil, nil
      quantity, released, at = read('<dd', terms, at)
      local counted, _, period, slot, held, held_before = unpack_meter(fields[place], name)
      held, held_before = release_hold(hold_slot, released, current_slot, slot, held, held_before)
      counted = period == begins_ms and counted or 0
      if is_recorded and quantity > 0 then
        counted = math.min(counted + quantity, MOST)
        lives_ms = ends_ms
      end
      hset[hset_count + 1] = name
      hset[hset_count + 2] = pack(FORM, counted, 0, begins_ms, current_slot, held, held_before, '')
      hset_count = hset_count + 2
    end
    local lasts_ms
    hset_count, lasts_ms = correct_rates(terms, at, rate_count, spend_rate_count, not is_recorded and 0 or nil, fields,
      words, behind - 1, meter_count + 2, hset, hset_count, now)
    at, lives_ms = at + SETTLED_RATE_BYTES * rate_count, math.max(lives_ms + QUARTER_HOUR_MS, now + lasts_ms)
    changed[nth - 1] = {words[behind], hset, hset_count, unpack_life(fields[1]), lives_ms,
      math.floor((lasts_ms - QUARTER_HOUR_MS) / 8)}
    behind = behind + meter_count + rate_count + 1
  end
  return function()
    local has_room = true
    for _, subject in ipairs(changed) do
      has_room = write_subject(keys[1], now, unpack(subject)) and has_room
    end
    return not has_room and 'subjects' or nil
  end
end
