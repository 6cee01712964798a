-- check_ceilings: checks a request against the ceilings and concurrency limits of a customer, and holds its quantity.
--   fields, words, name_offset: what was read of the counters; the name of fields[place] is words[name_offset + place]
--   terms, at: the ceilings in the terms, see decide; before: the place of the field before the first one's
--   count: how many ceilings; exempt: how many of them, the first ones, do not apply
--   backing: what grants and credits add, see extend_ceilings; or nil
--   is_counting: whether anything may be written; is_refused: whether another policy refuses the request
--   hset, hset_count: arguments of the HSET of all changed fields, and how many there are; report_policy: see decide
--   period: of the ceilings of a subject the first instant of the period, which stands in place of what is pending; or nil
-- Returns whether the request is refused, hset_count, and where the terms go on.
--include unpack_meter
--include live_holds
local function check_ceilings(fields, terms, at, words, name_offset, before, count, exempt, backing, current_slot,
  is_counting, is_refused, hset, hset_count, report_policy, period)
  local backed_count = backing and backing.count or 0
  for nth = 1, count do
    local included, overage_limit, needed, quantity
    included, overage_limit, needed, quantity, at = struct.unpack('<dddd', terms, at)
    local place = before + nth
    local name = words[name_offset + place]
    local counted, overage, pending, slot, held, held_before, extras = unpack_meter(fields[place], name)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    if period then
      counted, pending = pending == period and counted or 0, period
    end
    local available = math.max(0, included - counted) + math.max(0, overage_limit - overage)
    if nth <= backed_count then
      available = available + backing.units_of(nth)
    end
    local left = available - held - held_before
    if nth > exempt then
      is_refused = is_refused or needed > left
      if is_counting and quantity > 0 then
        left = left - quantity
        hset[hset_count + 1] = name
        hset[hset_count + 2] =
          cmsgpack.pack(FORM, counted, overage, pending, current_slot, held + quantity, held_before, extras)
        hset_count = hset_count + 2
        if nth <= backed_count then
          backing.claim(nth, quantity)
        end
      end
    end
    local total = overage_limit == UNCAPPED and 1 or math.max(included + math.max(0, overage_limit), 1)
    report_policy(left, total, available, held, held_before)
  end
  return is_refused, hset_count, at
end
