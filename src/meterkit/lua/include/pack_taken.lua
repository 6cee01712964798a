-- pack_taken: packs the field of a policy as it is when so many requests have taken from it what each takes.
--   policy: {what each takes, -, -, -, numbers of the field, which of them counts what is taken}
local function pack_taken(policy, requests)
  local quantity, _, _, _, numbers, counting = unpack(policy)
  local before = numbers[counting]
  numbers[counting] = math.min(before + requests * quantity, MOST)
  local packed = cmsgpack.pack(FORM, unpack(numbers))
  numbers[counting] = before
  return packed
end
