-- read_entry(packed, now): an entry of a queue. A damaged one is a new one without hints and notes, with
-- `damaged` set: it holds up no other entry.
local ENTRY_FIELDS = {
  n = 'number',
  noted = 'number',
  attempts = 'number',
  since = 'number',
  token = 'string',
  cause = 'string',
  why = 'string',
  notes = 'table',
}

local function read_entry(packed, now)
  local is_read, entry = pcall(cjson.decode, packed)
  is_read = is_read and type(entry) == 'table'
  for name, kind in pairs(ENTRY_FIELDS) do
    is_read = is_read and type(entry[name]) == kind
  end
  if is_read then
    return entry
  end
  entry = {n = 0, noted = 0, attempts = 0, since = now, token = '', cause = '', why = '', notes = {}}
  entry.damaged = true
  return entry
end
