-- confirm_counters: reads a customer's counters and totals, if the caller's view of the customer is current.
--   counters_key, totals_key: hashes; state_key: hash; rev: of the caller's view; caller_ms: the caller's clock
--   terms: doubles in ms: when the view expires, start and end of its period, end of the next period
-- Returns now (ms), and the reply that ends the script: of confirm_view, or {BROKEN, now, field} if a field that must be a
-- whole number is not one. Otherwise nil, then head, meters, totals, and start and end of the current period (ms).
--include confirm_view
--include read_counters
--include read_numbers
local function confirm_counters(counters_key, state_key, totals_key, rev, terms, caller_ms)
  local until_ms, first_start_ms, first_end_ms, next_end_ms = struct.unpack('<dddd', terms)
  local totals = {}
  local head, meters, damaged = read_counters(counters_key)
  damaged = damaged or read_numbers(totals_key, totals, {'|[efh]$', '|....[pigcojmqlkdxzrQLKDXZtaf]$'})
  if damaged then
    local now = server_ms(caller_ms)
    return now, {BROKEN, now, damaged}
  end
  -- Even without counters, recalled usage of past periods may be pending.
  local known = head or {seen_ms = 0, begins_ms = 0, ends_ms = 0, rev = ''}
  local now, period_start_ms, period_end_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms, first_end_ms,
    next_end_ms, caller_ms, known.rev, known.seen_ms, known.begins_ms, known.ends_ms, false)
  return now, verdict, head, meters, totals, period_start_ms, period_end_ms
end
