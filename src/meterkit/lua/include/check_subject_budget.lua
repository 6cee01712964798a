-- check_subject_budget: checks a request against the budget of a subject, and holds what it may cost.
--   name: of the budget's field; fields, place: what was read of the subject's counters, and where that field is; behind it
--   comes what was spent in the window, where the budget has one
--   terms, at: window (ms; 0: the period), amount and a minor unit of it (micro-units), needed, quantity (micro-units)
--   begins_ms, is_refused, is_repeat, is_counting, report_policy: see check_subjects; hset, hset_count: see write_subject
-- Returns whether the request is refused, hset_count, and where the terms go on.
local function check_subject_budget(name, fields, place, terms, at, begins_ms, now, current_slot, is_refused, is_repeat,
  is_counting, report_policy, hset, hset_count)
  local window, micros, unit, needed, quantity
  window, micros, unit, needed, quantity, at = struct.unpack('<ddddd', terms, at)
  local counted, _, period, slot, held, held_before = unpack_meter(fields[place], name)
  held, held_before = live_holds(current_slot, slot, held, held_before)
  counted = period == begins_ms and counted or 0
  if is_repeat then
    needed, quantity = 0, 0
  end
  local spent = counted
  if window > 0 then
    _, spent = advance_rate(FIXED_WINDOW, window, 0, now, unpack_rate(fields[place + 1], name))
  end
  local left = micros - spent - held - held_before
  is_refused = is_refused or needed > 0 and needed > left
  report_policy(math.floor((left - (is_counting and quantity or 0)) / unit), math.max(1, micros / unit), micros - spent,
    held + held_before, needed)
  hset[hset_count + 1] = name
  hset[hset_count + 2] = cmsgpack.pack(FORM, counted, 0, begins_ms, current_slot, held + quantity, held_before, '')
  hset_count = quantity > 0 and hset_count + 2 or hset_count
  return is_refused, hset_count, at
end
