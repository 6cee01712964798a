-- pack_taken: the field of a policy, packed as it is when so many requests have taken of it what each takes.
--   told: {what each takes, -, -, -, the field's numbers, which of them counts what is taken}
local function pack_taken(told, requests)
  local taken, _, _, _, numbers, counting = unpack(told)
  local before = numbers[counting]
  numbers[counting] = math.min(before + requests * taken, MOST)
  local packed = cmsgpack.pack(FORM, unpack(numbers))
  numbers[counting] = before
  return packed
end
