-- append_history: enters what has changed for a customer into the ledger of that, which keeps the last thousand.
--   key: list; entries: {what, from when on (ms, as text), before, after, cause} each
local function append_history(key, entries)
  for _, entry in ipairs(entries) do
    redis.call('RPUSH', key, cjson.encode(entry))
    redis.call('LTRIM', key, -HISTORY_MOST, -1)
  end
end
