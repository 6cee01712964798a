-- compare_event: counts an event id of the app once for each meter. Compares the given quantities with those counted before.
--   key: string, packed: FORM, then the token of each meter and its quantity; without meters: it has counted all of them
--   given: {token, quantity (UNCOMPARED: any), ...}; empty: the id counts once, for all meters
-- Returns remember(), which writes that the id has counted these meters, if it has counted none of them before.
-- Else nil, and a reply to send before a number is taken, or nil, and a reply to send after that:
--   before: {EVENT_PARTLY, now, what is kept of the id} if it has counted some of these meters
--   after: {EVENT_CONFLICT, now, the same} if a quantity differs; {OK, now} if it has counted all of them
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
    return nil, nil, {OK, now}
  elseif counted > 0 then
    return nil, {EVENT_PARTLY, now, kept}
  end
  local function remember()
    local more = given[1] and cmsgpack.pack(unpack(given)) or ''
    redis.call('SET', key, (kept or EMPTY_EVENT) .. more, 'PX', THIRTY_FIVE_DAYS_MS)
  end
  return remember
end
