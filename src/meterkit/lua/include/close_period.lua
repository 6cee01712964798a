-- close_period: brings a customer's counters to the period of `now`, which is not the one that they were in.
--   counters_key, totals_key: hashes; period_start_ms, period_end_ms: of the period of `now`, as the caller knows it
-- A period is over at its end, or where the caller's begins two minutes after it did, or later: the subscription is
-- another one. What was counted in it is added to the totals as PERIOD|FIELD, with PERIOD|e its end, behind all
-- minutes that deliveries were stamped with; the next one begins no earlier. A period that merely ends at another
-- time keeps its counts. `now` becomes the last time seen: whatever the script comes to, nothing is closed twice.
-- Returns nil, or the name of a field that is damaged: then nothing is done.
--include read_counters
--include pack_meter
--include read_numbers
--include forget_periods
local function close_period(counters_key, totals_key, now, period_start_ms, period_end_ms)
  local kinds = {i = 'included', o = 'overage', g = 'granted', c = 'credited', j = 'over_cap', p = 'pending',
    m = 'late'}
  local head, meters, damaged = read_counters(counters_key)
  if damaged then
    return damaged
  end
  local begins_ms, ends_ms = head.begins_ms, head.ends_ms
  local is_cut = period_start_ms >= begins_ms + 2 * MINUTE_MS
  if now >= ends_ms or is_cut then
    local id, set, gone, has_closed, stamped_ms = string.format('%.0f', begins_ms), {}, {}, false, 0
    damaged = read_numbers(totals_key, {}, {'|e$', '^' .. id .. '|....[igcojpm]$'})
    if damaged then
      return damaged
    end
    for token, meter in pairs(meters) do
      stamped_ms = math.max(stamped_ms, meter.stamped_ms)
      for kind, name in pairs(kinds) do
        if meter[name] > 0 then
          redis.call('HINCRBY', totals_key, id .. '|' .. token .. kind, string.format('%.0f', meter[name]))
          meter[name], has_closed = 0, true
        end
      end
      if meter.stamped_ms > 0 or meter.slot >= math.floor(now / HOLD_SLOT_MS) - 1 then
        set[#set + 1], set[#set + 2] = token .. 'm', pack_meter(meter)
      else
        gone[#gone + 1] = token .. 'm'
      end
    end
    local till_ms = ends_ms
    if is_cut then -- Also where nothing has come until after its own end.
      till_ms = math.min(ends_ms, math.max(period_start_ms, stamped_ms + 2 * MINUTE_MS))
    end
    if has_closed then
      redis.call('HSET', totals_key, id .. '|e', till_ms)
      redis.call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
    end
    forget_periods(totals_key, now)
    begins_ms = math.max(period_start_ms, till_ms)
    if #set > 0 then
      redis.call('HSET', counters_key, unpack(set))
    end
    if #gone > 0 then
      redis.call('HDEL', counters_key, unpack(gone))
    end
  end
  local packed = cmsgpack.pack(FORM, now, begins_ms, period_end_ms, head.expires_ms, head.rev)
  redis.call('HSET', counters_key, 'h', packed)
  return nil
end
