-- compare_event: an event id of the app counts once for each meter: compares what it is given with and what it has counted.
--   key: string, packed: FORM, then the token of each meter and its quantity; without meters: it has counted all of them
--   given: {token, quantity (UNCOMPARED: any), ...}; empty: the id counts once, whatever it is given with
-- Returns, where it has counted none of these meters, keep(): writes that it has counted them. Else nil, and a reply:
-- before a number is taken {EVENT_PARTLY, now, what is kept of the id}, where it has counted some of them; nil, nil, and
-- one after that: {EVENT_CONFLICT, now, the same} where a quantity differs, {0, now} where it has counted them all.
local function compare_event(key, given, now)
  local kept = redis.call('GET', key)
  local known, quantities, counted = {cmsgpack.unpack(kept or EMPTY_EVENT)}, {}, 0
  for i = 2, #known, 2 do
    quantities[known[i]] = known[i + 1]
  end
  for i = 1, #given, 2 do
    local before, quantity = quantities[given[i]], given[i + 1]
    if before and before ~= quantity and before ~= UNCOMPARED and quantity ~= UNCOMPARED then
      return nil, nil, {EVENT_CONFLICT, now, kept}
    end
    counted = before and counted + 2 or counted
  end
  if kept and (#known == 1 or counted == #given) then
    return nil, nil, {0, now}
  elseif counted > 0 then
    return nil, {EVENT_PARTLY, now, kept}
  end
  local function keep()
    local more = given[1] and cmsgpack.pack(unpack(given)) or ''
    redis.call('SET', key, (kept or EMPTY_EVENT) .. more, 'PX', THIRTY_FIVE_DAYS_MS)
  end
  return keep
end
