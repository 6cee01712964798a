-- set_of: makes a table whose keys are the entries of a list.
local function set_of(list)
  local set = {}
  for _, entry in ipairs(list) do
    set[entry] = true
  end
  return set
end
