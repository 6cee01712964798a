-- confirm_view: checks that the caller's view of a customer is current, before a script touches the counters.
--   state_key: hash
--   rev, until_ms, from_ms, ends_ms, next_ends_ms: of the view: its rev, when it expires, start and end of its period, end
--   of the next period; caller_ms: the caller's clock, which counts only where a test sets it
--   known_rev, seen_ms, known_begins_ms, known_ends_ms: of the counters, '' and 0 where there are none; is_forced: whether
--   any rev will do
-- Returns now (ms), start and end of the current period; then nil, or the reply that ends the script:
-- {STALE, now, rev, state}.
-- Only the server's clock decides. If it went back by up to CLOCK_JITTER_MS, time stands still for the customer. If it went
-- back further, now is the server's time; a period of the counters that begins later goes on, and never opens twice.
--include server_ms
local function confirm_view(
  state_key, rev, until_ms, from_ms, ends_ms, next_ends_ms, caller_ms, known_rev, seen_ms, known_begins_ms, known_ends_ms,
  is_forced)
  local now = server_ms(caller_ms)
  if seen_ms > now and seen_ms - now <= CLOCK_JITTER_MS then
    now = seen_ms
  end
  local is_outside = now >= until_ms or now < from_ms
  if (is_outside or known_rev ~= rev) and not is_forced then
    local state = redis.call('HMGET', state_key, 'rev', 'data')
    local current = state[1] or NO_STATE
    if is_outside or current ~= rev then
      return now, nil, nil, {STALE, now, current, state[2] or ''}
    end
  end
  if now >= ends_ms then
    from_ms, ends_ms = ends_ms, next_ends_ms
  end
  if known_begins_ms >= ends_ms then
    return now, known_begins_ms, known_ends_ms, nil
  end
  return now, from_ms, ends_ms, nil
end
