-- correct_rates: adds to rates the quantities that they have not counted yet, see correct_rate.
--   terms, at: the rates in the terms of settle; count: how many; spend_rate_count: how many of them, the last ones, count
--   what is spent, or nil; first: the place of the first one's field; the name of fields[place] is words[name_offset + place]
--   hset, hset_count: arguments of the HSET of all changed fields, and how many there are
-- Returns hset_count, and for how long what they have counted matters, with a quarter of an hour (ms).
--include correct_rate
local function correct_rates(terms, at, count, spend_rate_count, spent, fields, words, name_offset, first, hset, hset_count, now)
  local lasts_ms = QUARTER_HOUR_MS
  for nth = 1, count do
    local kind, window, refill, quantity, counted_ms
    kind, window, refill, quantity, counted_ms, at = struct.unpack('<ddddd', terms, at)
    if spend_rate_count and nth > count - spend_rate_count then
      quantity = spent or quantity
    end
    local place = first + nth - 1
    local name = words[name_offset + place]
    local packed, matters_ms = correct_rate(fields[place], name, kind, window, refill, quantity, counted_ms, now)
    lasts_ms = math.max(lasts_ms, QUARTER_HOUR_MS + matters_ms)
    hset[hset_count + 1] = name
    hset[hset_count + 2] = packed
    hset_count = hset_count + 2
  end
  return hset_count, lasts_ms
end
