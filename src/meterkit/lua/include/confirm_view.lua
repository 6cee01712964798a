-- confirm_view: checks that the caller's view of a customer is current, before a script touches the counters.
--   state_key: hash
--   rev, until_ms, from_ms, ends_ms, next_ends_ms: of the view: its rev, when it expires, start and end of its period, end
--   of the next period; caller_ms: the caller's clock
--   known_rev, seen_ms, known_ends_ms: of the counters, '' and 0 where there are none; is_forced: whether any rev will do
-- Returns now (ms, never before seen_ms), start and end of the period of now by the caller's view; then nil, or the reply
-- that ends the script: {STALE, now, rev, state}, or {CLOCK, now} where the clocks differ too much.
--include server_ms
local function confirm_view(
  state_key, rev, until_ms, from_ms, ends_ms, next_ends_ms, caller_ms, known_rev, seen_ms, known_ends_ms, is_forced)
  local server = server_ms(caller_ms)
  local now = seen_ms > server and seen_ms or server
  local is_outside = now >= until_ms or now < from_ms
  if (is_outside or known_rev ~= rev) and not is_forced then
    local state = redis.call('HMGET', state_key, 'rev', 'data')
    local current = state[1] or NO_STATE
    if is_outside or current ~= rev then
      return now, nil, nil, {STALE, now, current, state[2] or ''}
    end
  end
  local moves = server - seen_ms > MINUTE_MS or known_ends_ms > 0 and now >= known_ends_ms
  if moves and math.abs(server - caller_ms) > MINUTE_MS then
    return now, nil, nil, {CLOCK, now}
  elseif now < ends_ms then
    return now, from_ms, ends_ms, nil
  end
  return now, ends_ms, next_ends_ms, nil
end
