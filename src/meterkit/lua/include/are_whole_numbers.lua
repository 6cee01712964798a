-- are_whole_numbers: whether all values are whole numbers that can be counted with.
local function are_whole_numbers(...)
  for i = 1, select('#', ...) do
    local number = select(i, ...)
    if type(number) ~= 'number' or number < 0 or number > MOST or number % 1 ~= 0 then
      return false
    end
  end
  return true
end
