-- check_gauges: checks whether gauges may grow, and holds what they would grow by.
--   key: hash of a gauge to its level, packed
--   gauges: each {gauge, its field, the place of that field, included, highest level tolerated, for how long since the
--   level went above included (ms), whether the gauge may grow up to what was included when its level last fitted}
--   fields: what was read of the counters; is_counting: whether anything may be written
--   is_repeat: whether nothing grows by the request; is_refused: whether another policy refuses it
--   terms, at: the gauges in the terms, see decide; refusal, refusal_count: where limit, level and held of each go
--   hset, hset_count: arguments of the HSET of all changed fields, and how many there are
-- Returns whether the request is refused, refusal_count, hset_count, and where the terms go on.
--include unpack_meter
--include live_holds
--include unpack_level
--include level_state
--include unpack_presigned
local function check_gauges(key, gauges, fields, now, is_counting, is_repeat, is_refused, terms, at, refusal,
  refusal_count, hset, hset_count)
  local current_slot, changed_levels = math.floor(now / HOLD_SLOT_MS), {}
  for _, gauge in ipairs(gauges) do
    local name, field, place, included, tolerated, grace_ms, keeps_included = unpack(gauge)
    local needed, quantity
    needed, quantity, at = struct.unpack('<dd', terms, at)
    local level, known_over_ms, known_fitted = unpack_level(redis.call('HGET', key, name), name)
    local over_ms, fitted = level_state(level, included, known_over_ms, known_fitted, now)
    local limit = tolerated
    if over_ms > 0 and now - over_ms >= grace_ms then
      limit = included
    end
    if keeps_included then
      limit = fitted < 0 and VALUE_MOST or math.max(limit, fitted)
    end
    local counted, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], field)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    local presigned = unpack_presigned(redis.call('HGET', key, name .. '+'), name, current_slot)
    is_refused = is_refused or not is_repeat and needed > limit - level - held - held_before - presigned
    refusal[refusal_count + 1] = limit
    refusal[refusal_count + 2] = level
    refusal[refusal_count + 3] = held + held_before + presigned
    refusal_count = refusal_count + 3
    if quantity > 0 and not is_repeat then
      hset[hset_count + 1] = field
      hset[hset_count + 2] =
        cmsgpack.pack(FORM, counted, overage, pending, current_slot, held + quantity, held_before, extras)
      hset_count = hset_count + 2
    end
    if level > 0 and (over_ms ~= known_over_ms or fitted ~= known_fitted) then
      changed_levels[#changed_levels + 1] = name
      changed_levels[#changed_levels + 1] = cmsgpack.pack(FORM, level, over_ms, fitted)
    end
  end
  if is_counting and #changed_levels > 0 then -- Also if the request is refused: the levels themselves stay.
    redis.call('HSET', key, unpack(changed_levels))
  end
  return is_refused, refusal_count, hset_count, at
end
