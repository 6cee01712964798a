-- seal_closed_periods: seals pending usage of periods that have ended, into the minutes that each keeps for that.
--   totals_key: hash; totals, meters: as read; events: token to event name; taken_minutes: a set (ms)
--   former: event names that ended: {until when (ms), token to event name} each, oldest first
--   latest_ms: the latest minute that may be stamped now; ahead_ms: how far ahead of now that is
--   seal_units, wait_until, wait_for_name: see seal
--include meters_of_event
local function seal_closed_periods(totals_key, totals, events, former, meters, taken_minutes, latest_ms, ahead_ms,
  seal_units, wait_until, wait_for_name)
  local function events_until(ends_ms) -- Returns the event names of a period that ended then, by token.
    for _, ended in ipairs(former) do
      if ends_ms <= ended[1] then
        local found = {}
        for token, event in pairs(events) do
          found[token] = ended[2][token] or event
        end
        return found
      end
    end
    return events
  end

  for name, value in pairs(totals) do
    local period, token = string.match(name, '^(%d+)|(....)p$')
    local quantity = period and tonumber(value) or 0
    local ends_ms = quantity > 0 and tonumber(totals[period .. '|e'])
    local then_events = ends_ms and events_until(ends_ms)
    if quantity > 0 and not then_events[token] then
      wait_for_name(token, quantity)
    elseif quantity > 0 then
      local _, rank = meters_of_event(then_events, meters, token)
      local minute = (math.floor(ends_ms / MINUTE_MS) - 1 - rank) * MINUTE_MS
      while taken_minutes[minute] do
        minute = minute - MINUTE_MS
      end
      if minute > latest_ms then -- It follows a minute that was ahead already when the period was cut short.
        wait_until(minute - ahead_ms)
      else
        while quantity > 0 do
          quantity = seal_units(period, token, then_events[token], quantity, minute)
        end
        redis.call('HDEL', totals_key, name)
      end
    end
  end
end
