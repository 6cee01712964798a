-- report_refusal: completes the reply that refuses a request. The rates are read again, as they were before the request:
-- an allowed request then need not note them.
--   refusal, refusal_count: numbers of the policies behind the rates, each at its place in the reply; the last place
--   code, ends_ms: see the reply of decide; fields: what was read of the counters
--   terms, at, count: the rates in the terms of decide, and how many; backing: see extend_ceilings, or nil
-- Returns the reply.
--include unpack_rate
--include advance_rate
local function report_refusal(refusal, refusal_count, code, now, ends_ms, fields, terms, at, count, backing)
  refusal[1], refusal[2], refusal[3] = code, now, ends_ms
  for nth = 1, count do
    local kind, window, refill, counted, previous, _
    kind, window, _, refill, _, _, at = struct.unpack('<dddddd', terms, at)
    _, counted, previous = advance_rate(kind, window, refill, now, unpack_rate(fields[nth + 1], nth))
    refusal[3 * nth + 1], refusal[3 * nth + 2], refusal[3 * nth + 3] = counted, previous, 0
  end
  if backing then
    backing.append_to(refusal, refusal_count)
  end
  return refusal
end
