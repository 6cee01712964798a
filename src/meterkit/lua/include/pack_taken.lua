-- pack_taken: packs the field of a policy as it is after a number of requests.
--   policy: {quantity of each request, -, -, -, numbers of the field, index of the number that counts}; requests: number
local function pack_taken(policy, requests)
  local quantity, _, _, _, numbers, counting = unpack(policy)
  local before = numbers[counting]
  numbers[counting] = math.min(before + requests * quantity, MOST)
  local packed = cmsgpack.pack(FORM, unpack(numbers))
  numbers[counting] = before
  return packed
end
