-- check_rates: checks a request against the rates of a customer, and counts its quantity.
--   fields, words, name_offset: what was read of the counters; the name of fields[place] is words[name_offset + place]
--   terms, at: the rates in the terms, see decide; count: how many; is_counting: whether anything may be written
--   hset, hset_count: arguments of the HSET of all changed fields, and how many there are
--   report_policy: of the rates of a subject, see decide; or nil
-- Returns whether a rate refuses, hset_count, and of the rate nearest to its limit: its number, what is left, which share
-- of the limit that is, and what was counted in the window before.
--include unpack_rate
--include advance_rate
local function check_rates(fields, terms, at, words, name_offset, count, now, is_counting, hset, hset_count,
  report_policy)
  local is_refused, nearest, nearest_left, nearest_share, nearest_before = false, 0, 0, math.huge, 0
  for place = 2, count + 1 do
    local kind, window, limit, refill, needed, quantity
    kind, window, limit, refill, needed, quantity, at = struct.unpack('<dddddd', terms, at)
    local name = words[name_offset + place]
    local slot, counted, previous, used = advance_rate(kind, window, refill, now, unpack_rate(fields[place], name))
    is_refused = is_refused or used + needed > limit
    if is_counting then
      used = used + quantity
      hset[hset_count + 1] = name
      hset[hset_count + 2] = cmsgpack.pack(FORM, slot, math.min(counted + quantity, MOST), previous)
      hset_count = hset_count + 2
    end
    if report_policy then
      report_policy(limit - used, limit, counted, previous, 0)
    end
    local share = (limit - used) / limit
    if share < nearest_share then
      nearest, nearest_left, nearest_share, nearest_before = place - 1, limit - used, share, previous
    end
  end
  return is_refused, hset_count, nearest, nearest_left, nearest_share, nearest_before
end
