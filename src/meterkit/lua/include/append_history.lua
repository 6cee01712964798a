-- append_history: appends entries to a customer's ledger of changes, which keeps the last thousand.
--   key: list; entries: {kind, since when (ms, as text), before, after, cause} each
local function append_history(key, entries)
  for _, entry in ipairs(entries) do
    redis.call('RPUSH', key, cjson.encode(entry))
    redis.call('LTRIM', key, -HISTORY_MOST, -1)
  end
end
