-- enter: enters what has changed for a customer into the ledger of that, which keeps the last thousand or so.
--   key: stream; entries: {what, from when on (ms, as text), before, after, cause} each
local function enter(key, entries)
  for _, entry in ipairs(entries) do
    local kind, at, before, after, cause = unpack(entry)
    redis.call('XADD', key, 'MAXLEN', '~', HISTORY_MOST, '*', 'kind', kind, 'at', at, 'from', before, 'to', after,
      'cause', cause)
  end
end
