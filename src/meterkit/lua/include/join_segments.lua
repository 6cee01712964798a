-- join_segments: joins price segments of the same label, which keeps the units of each price. Two plans files at once, as
-- in a deployment, may change the price with each request.
--   marks: see end_price_segment
local function join_segments(marks)
  local labels, sealed_at, overage_at, sealed_before, overage_before = {}, {}, {}, 0, 0
  for label, sealed, overage in string.gmatch(marks, '([^ ;]+) (%d+) (%d+);') do
    if not sealed_at[label] then
      labels[#labels + 1], sealed_at[label], overage_at[label] = label, 0, 0
    end
    sealed_at[label] = sealed_at[label] + sealed - sealed_before
    overage_at[label] = overage_at[label] + overage - overage_before
    sealed_before, overage_before = tonumber(sealed), tonumber(overage)
  end
  marks, sealed_before, overage_before = '', 0, 0
  for _, label in ipairs(labels) do
    sealed_before, overage_before = sealed_before + sealed_at[label], overage_before + overage_at[label]
    marks = marks .. string.format('%s %.0f %.0f;', label, sealed_before, overage_before)
  end
  return marks
end
