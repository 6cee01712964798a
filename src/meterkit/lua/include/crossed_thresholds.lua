-- crossed_thresholds: the percentages of what is included that a settlement has reached.
--   terms, at: a threshold each, the place of its meter's field, the quantity, the percentage, what is included
--   fields: before, by their places; write: names and values after, as HSET takes them
-- Returns the notices of them; see queue_notices.
--include unpack_extras
local function crossed_thresholds(terms, at, thresholds, fields, write)
  local notices = {}
  local function recorded(packed, name)
    local included, overage, _, _, _, _, besides = unpack_meter(packed, name)
    local granted, credited, _, _, over_cap = unpack_extras(besides)
    return included + overage + granted + credited + over_cap
  end
  for _ = 1, thresholds do
    local place, quantity, percent, included
    place, quantity, percent, included, at = struct.unpack('<dddd', terms, at)
    local name = write[2 * place]
    local before, after = recorded(fields[place], name), recorded(write[2 * place + 1], name)
    if before < quantity and after >= quantity then
      notices[#notices + 1] = {'usage.threshold', string.sub(name, 1, 4), after, percent, included}
    end
  end
  return notices
end
