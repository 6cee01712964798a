-- read_numbers: reads a hash into a table; returns the name of a field that must be a whole number and is none, or
-- the key where it is no hash.
--   `patterns`: of the names of such fields
local function read_numbers(key, into, patterns)
  local list = redis.pcall('HGETALL', key)
  if list.err then
    return key
  end
  for i = 1, #list, 2 do
    into[list[i]] = list[i + 1]
    for _, pattern in ipairs(patterns) do
      if string.find(list[i], pattern) and not string.find(list[i + 1], '^%d+$') then
        return list[i]
      end
    end
  end
end
