-- check_gauges: whether gauges may grow, and what is set aside of them.
--   key: hash of a gauge to its level, packed
--   asked: {gauge, its field, the place of that among the fields, included, the most that is tolerated, for how long
--   since the level went above included (ms), whether it may grow further as far as was included when it last was not above
--   that} each
--   fields: the counters' that were read; takes: whether anything may be written; is_repeat: whether
--   nothing is to grow by it; is_full: whether it is refused already
--   terms, at: needed, held each; told, t: where three numbers each are put: limit, level, held;
--   write, w: where the fields are put that change
-- Returns whether it is refused then, and t, w, at behind all that.
--include unpack_meter
--include live_holds
--include unpack_level
--include overage_state
--include unpack_presigned
local function check_gauges(key, asked, fields, now, takes, is_repeat, is_full, terms, at, told, t, write, w)
  local current_slot, turned = math.floor(now / HOLD_SLOT_MS), {}
  for _, gauge in ipairs(asked) do
    local name, field, place, included, most, grace_ms, keeps = unpack(gauge)
    local needed, taken
    needed, taken, at = struct.unpack('<dd', terms, at)
    local level, over_ms, fitted = unpack_level(redis.call('HGET', key, name), name)
    local since_ms, fits = overage_state(level, included, over_ms, fitted, now)
    local limit = since_ms > 0 and now - since_ms >= grace_ms and included or most
    limit = keeps and (fits < 0 and VALUE_MOST or math.max(limit, fits)) or limit
    local counted, overage, pending, slot, held, held_before, besides = unpack_meter(fields[place], field)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    local presigned = unpack_presigned(redis.call('HGET', key, name .. '+'), name, current_slot)
    is_full = is_full or not is_repeat and needed > limit - level - held - held_before - presigned
    told[t + 1], told[t + 2], told[t + 3], t = limit, level, held + held_before + presigned, t + 3
    if taken > 0 and not is_repeat then
      write[w + 1], write[w + 2], w = field,
        cmsgpack.pack(FORM, counted, overage, pending, current_slot, held + taken, held_before, besides), w + 2
    end
    if level > 0 and (since_ms ~= over_ms or fits ~= fitted) then
      turned[#turned + 1], turned[#turned + 2] = name, cmsgpack.pack(FORM, level, since_ms, fits)
    end
  end
  if takes and #turned > 0 then -- Also where it is refused: it is no more than was so before.
    redis.call('HSET', key, unpack(turned))
  end
  return is_full, t, w, at
end
