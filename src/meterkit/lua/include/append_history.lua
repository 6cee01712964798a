-- append_history: appends entries to a customer's ledger of changes, which keeps about the last thousand. What became of
-- units goes first: there may be thousands in a period, and by the rest closed periods are priced.
--   key: list; entries: {kind, since when (ms, as text), before, after, cause} each
local OF_UNITS = {correction = true, intent = true, late = true, rebuilt = true, storage = true}
local function append_history(key, entries)
  for _, entry in ipairs(entries) do
    redis.call('RPUSH', key, cjson.encode(entry))
  end
  if redis.call('LLEN', key) <= HISTORY_MOST then
    return
  end
  local lines = redis.call('LRANGE', key, 0, -1)
  local kept, over = {}, #lines - HISTORY_MOST + HISTORY_SPARED
  for nth, line in ipairs(lines) do
    if over > 0 and nth <= #lines - #entries and OF_UNITS[string.match(line, '^%["(%l+)"')] then
      over = over - 1
    else
      kept[#kept + 1] = line
    end
  end
  if #kept < #lines then
    redis.call('DEL', key)
    redis.call('RPUSH', key, unpack(kept))
  end
  redis.call('LTRIM', key, -HISTORY_MOST, -1)
end
