-- sorted_keys: the keys of a table, sorted: what is done with them one after the other comes to the same each time.
local function sorted_keys(found)
  local keys = {}
  for key in pairs(found) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end
