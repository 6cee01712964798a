-- as_set: a table whose keys are the entries of a list.
local function as_set(list)
  local set = {}
  for _, entry in ipairs(list) do
    set[entry] = true
  end
  return set
end
