-- sorted_keys: lists the keys of a table, sorted, so that a script does the same each time.
local function sorted_keys(found)
  local keys = {}
  for key in pairs(found) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end
