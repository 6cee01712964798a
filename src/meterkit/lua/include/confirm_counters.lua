-- confirm_counters: reads a customer's counters and totals, if the caller's view of the customer holds.
--   counters_key, totals_key: hashes; state_key: hash; rev, terms: the caller's rev, and first of all until when that is
--   valid, start and end of the period, end of the next one (ms, as doubles); caller_ms: the caller's clock
-- Returns now (ms), and the reply that ends the script: what confirm_view says, or {4, now, field} where a field that
-- must be a whole number is none; or nil, and then head, meters and totals, start and end of the period of now (ms).
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
    return now, {4, now, damaged}
  end
  -- If the counters are gone, usage of past periods may have been taken back nevertheless.
  local known = head or {seen_ms = 0, ends_ms = 0, rev = ''}
  local now, starts_ms, finishes_ms, verdict = confirm_view(state_key, rev, until_ms, first_start_ms, first_end_ms,
    next_end_ms, caller_ms, known.rev, known.seen_ms, known.ends_ms, false)
  return now, verdict, head, meters, totals, starts_ms, finishes_ms
end
