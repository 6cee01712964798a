-- check_subjects: whether the subjects of a customer may: users or teams, each with counters of its own.
--   keys: as pop_subjects gives them; words: a subject each, its member of the index, then its fields
--   terms: a subject each, how long its counters live at least (ms), how many rates, ceilings, concurrency limits, and
--   fields of a budget; then kind, window, limit, refill, needed, taken a rate; limit, needed, taken a ceiling or a
--   concurrency limit; window (ms; 0: the period), micro-units, micro-units in a minor unit, needed, taken a budget
--   begins_ms: of the customer's period; refuses: whether the customer is refused already
--   is_repeat: whether ceilings and budgets ask nothing; takes, report_policy: see decide
-- A field of a ceiling is as a meter's: counted, 0, the period that this is of; see docs/design/store.md.
-- Returns whether it is refused then; and keep(): writes what has changed of each.
--include unpack_meter
--include live_holds
--include unpack_rate
--include advance_rate
--include write_subject
local function check_subjects(keys, words, terms, begins_ms, now, refuses, is_repeat, takes, report_policy)
  local read, pack, current_slot, kept, behind, at = struct.unpack, cmsgpack.pack, math.floor(now / HOLD_SLOT_MS), {}, 1, 1
  for nth = 2, #keys do
    local keep_ms, rates, ceilings, in_flight, spans
    keep_ms, rates, ceilings, in_flight, spans, at = read('<ddddd', terms, at)
    local key, member, limits = keys[nth], words[behind], rates + ceilings + in_flight
    local fields = redis.call('HMGET', key, 'h', unpack(words, behind + 1, behind + limits + spans))
    local write, w = {key, nil, nil, nil, nil, nil, nil}, 1 -- With place: growing copies a table.
    for place = 2, limits + 1 do
      local name, whole = words[behind + place - 1], nil
      if place <= rates + 1 then
        local kind, window, refill, needed, taken
        kind, window, whole, refill, needed, taken, at = read('<dddddd', terms, at)
        local slot, counted, previous, used = advance_rate(kind, window, refill, now, unpack_rate(fields[place], name))
        refuses = refuses or used + needed > whole
        report_policy(whole - used - (takes and taken or 0), whole, counted, previous, 0)
        write[w + 1], write[w + 2], w = name, pack(FORM, slot, math.min(counted + taken, MOST), previous), w + 2
      else
        local needed, taken
        whole, needed, taken, at = read('<ddd', terms, at)
        local asks = not is_repeat or place > rates + ceilings + 1
        local counted, _, period, slot, held, held_before = unpack_meter(fields[place], name)
        held, held_before = live_holds(current_slot, slot, held, held_before)
        counted, taken = period == begins_ms and counted or 0, asks and taken or 0
        local available = math.max(0, whole - counted)
        refuses = refuses or asks and needed > available - held - held_before
        report_policy(available - held - held_before - (takes and taken or 0), math.max(1, whole), available, held, held_before)
        write[w + 1], write[w + 2] = name, pack(FORM, counted, 0, begins_ms, current_slot, held + taken, held_before, '')
        w = taken > 0 and w + 2 or w
      end
    end
    if spans > 0 then
      local window, micros, unit, needed, taken
      window, micros, unit, needed, taken, at = read('<ddddd', terms, at)
      local name, place = words[behind + limits + 1], limits + 2
      local counted, _, period, slot, held, held_before = unpack_meter(fields[place], name)
      held, held_before = live_holds(current_slot, slot, held, held_before)
      counted, needed, taken = period == begins_ms and counted or 0, is_repeat and 0 or needed, is_repeat and 0 or taken
      local spent = counted
      if window > 0 then
        _, spent = advance_rate(FIXED_WINDOW, window, 0, now, unpack_rate(fields[place + 1], name))
      end
      local left = micros - spent - held - held_before
      refuses = refuses or needed > 0 and needed > left
      report_policy(math.floor((left - (takes and taken or 0)) / unit), math.max(1, micros / unit), micros - spent,
        held + held_before, needed)
      write[w + 1], write[w + 2] = name, pack(FORM, counted, 0, begins_ms, current_slot, held + taken, held_before, '')
      w = taken > 0 and w + 2 or w
    end
    behind = behind + limits + spans + 1
    kept[nth - 1] = {member, write, w, fields[1], now + keep_ms, math.floor(keep_ms / 8)}
  end
  return refuses, function()
    for _, one in ipairs(kept) do
      write_subject(keys[1], now, unpack(one))
    end
  end
end
