-- check_subjects: checks the subjects of a customer: users or teams, each with limits and counters of its own.
--   keys: as pop_subjects returns them; words: of each subject its member of the index, then its fields
--   terms: of each subject how long its counters live at least (ms), numbers of its rates, ceilings, concurrency limits and
--   fields of a budget; then of each rate and of each ceiling or concurrency limit what decide has, and of a budget: see
--   check_subject_budget
--   begins_ms: of the customer's period; is_refused: whether another policy refuses the request
--   is_repeat: whether ceilings and budgets do not apply; is_counting, report_policy: see decide
-- The field of a ceiling is packed like a meter's: counted, 0, first instant of the period; see docs/design/store.md.
-- Returns whether the request is refused, and write_subjects(), which writes what has changed.
--include check_rates
--include check_ceilings
--include check_subject_budget
--include unpack_life
--include write_subject
local function check_subjects(keys, words, terms, begins_ms, now, is_refused, is_repeat, is_counting, report_policy)
  local current_slot = math.floor(now / HOLD_SLOT_MS)
  local changed, behind, at = {}, 1, 1
  for nth = 2, #keys do
    local keep_ms, rate_count, ceiling_count, concurrency_count, budget_fields
    keep_ms, rate_count, ceiling_count, concurrency_count, budget_fields, at = struct.unpack('<ddddd', terms, at)
    local key, member, limit_count = keys[nth], words[behind], rate_count + ceiling_count + concurrency_count
    local fields = redis.call('HMGET', key, 'h', unpack(words, behind + 1, behind + limit_count + budget_fields))
    local hset, hset_count = {key, nil, nil, nil, nil, nil, nil}, 1 -- With room: growing a table copies it.
    local rate_refuses
    rate_refuses, hset_count = check_rates(fields, terms, at, words, behind - 1, rate_count, now, is_counting, hset,
      hset_count, report_policy)
    is_refused, hset_count, at = check_ceilings(fields, terms, at + RATE_BYTES * rate_count, words, behind - 1,
      rate_count + 1, ceiling_count + concurrency_count, is_repeat and ceiling_count or 0, nil, current_slot, is_counting,
      is_refused or rate_refuses, hset, hset_count, report_policy, begins_ms)
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
