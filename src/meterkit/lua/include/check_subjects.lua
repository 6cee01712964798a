-- check_subjects: checks the subjects of a customer: users or teams, each with limits and counters of its own.
--   keys: as pop_subjects returns them; words: of each subject its member of the index, then its fields
--   terms: of each subject how long its counters live at least (ms), numbers of its rates, ceilings, concurrency limits and
--   fields of a budget; then of each rate kind, window, limit, refill, needed, quantity; of each ceiling or concurrency
--   limit: limit, needed, quantity; of a budget: see check_subject_budget
--   begins_ms: of the customer's period; is_refused: whether another policy refuses the request
--   is_repeat: whether ceilings and budgets do not apply; is_counting, report_policy: see decide
-- The field of a ceiling is packed like a meter's: counted, 0, first instant of the period; see docs/design/store.md.
-- Returns whether the request is refused, and write_subjects(), which writes what has changed.
--include unpack_meter
--include live_holds
--include unpack_rate
--include advance_rate
--include check_subject_budget
--include unpack_life
--include write_subject
local function check_subjects(keys, words, terms, begins_ms, now, is_refused, is_repeat, is_counting, report_policy)
  local read, pack, current_slot = struct.unpack, cmsgpack.pack, math.floor(now / HOLD_SLOT_MS)
  local changed, behind, at = {}, 1, 1
  for nth = 2, #keys do
    local keep_ms, rate_count, ceiling_count, concurrency_count, budget_fields
    keep_ms, rate_count, ceiling_count, concurrency_count, budget_fields, at = read('<ddddd', terms, at)
    local key, member, limit_count = keys[nth], words[behind], rate_count + ceiling_count + concurrency_count
    local fields = redis.call('HMGET', key, 'h', unpack(words, behind + 1, behind + limit_count + budget_fields))
    local hset, hset_count = {key, nil, nil, nil, nil, nil, nil}, 1 -- With room: growing a table copies it.
    for place = 2, limit_count + 1 do
      local name, limit, needed, quantity = words[behind + place - 1], nil, nil, nil
      if place <= rate_count + 1 then
        local kind, window, refill
        kind, window, limit, refill, needed, quantity, at = read('<dddddd', terms, at)
        local slot, counted, previous, used = advance_rate(kind, window, refill, now, unpack_rate(fields[place], name))
        is_refused = is_refused or used + needed > limit
        report_policy(limit - used - (is_counting and quantity or 0), limit, counted, previous, 0)
        hset[hset_count + 1] = name
        hset[hset_count + 2] = pack(FORM, slot, math.min(counted + quantity, MOST), previous)
        hset_count = hset_count + 2
      else
        limit, needed, quantity, at = read('<ddd', terms, at)
        local applies = not is_repeat or place > rate_count + ceiling_count + 1
        local counted, _, period, slot, held, held_before = unpack_meter(fields[place], name)
        held, held_before = live_holds(current_slot, slot, held, held_before)
        counted = period == begins_ms and counted or 0
        quantity = applies and quantity or 0
        local available = math.max(0, limit - counted)
        local left = available - held - held_before
        is_refused = is_refused or applies and needed > left
        report_policy(left - (is_counting and quantity or 0), math.max(1, limit), available, held, held_before)
        hset[hset_count + 1] = name
        hset[hset_count + 2] = pack(FORM, counted, 0, begins_ms, current_slot, held + quantity, held_before, '')
        hset_count = quantity > 0 and hset_count + 2 or hset_count
      end
    end
    if budget_fields > 0 then
      is_refused, hset_count, at = check_subject_budget(words[behind + limit_count + 1], fields, limit_count + 2, terms, at,
        begins_ms, now, current_slot, is_refused, is_repeat, is_counting, report_policy, hset, hset_count)
    end
    behind = behind + limit_count + budget_fields + 1
    changed[nth - 1] = {member, hset, hset_count, unpack_life(fields[1]), now + keep_ms, math.floor(keep_ms / 8)}
  end
  return is_refused, function()
    for _, subject in ipairs(changed) do
      write_subject(keys[1], now, unpack(subject))
    end
  end
end
