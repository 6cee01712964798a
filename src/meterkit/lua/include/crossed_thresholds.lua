-- crossed_thresholds: lists the thresholds of what is included that a settlement has crossed.
--   terms, at: each threshold: place of its meter's field, quantity, percentage, what is included; count: how many
--   fields: before the settlement, by their places; hset: names and values after it, as arguments of HSET
-- Returns a notice of each; see queue_notices.
--include unpack_extras
local function crossed_thresholds(terms, at, count, fields, hset)
  local notices = {}
  local function recorded_units(packed, name)
    local included, overage, _, _, _, _, extras = unpack_meter(packed, name)
    local granted, credited, _, _, over_cap = unpack_extras(extras)
    return included + overage + granted + credited + over_cap
  end
  for _ = 1, count do
    local place, quantity, percent, included
    place, quantity, percent, included, at = struct.unpack('<dddd', terms, at)
    local name = hset[2 * place]
    local before = recorded_units(fields[place], name)
    local after = recorded_units(hset[2 * place + 1], name)
    if before < quantity and after >= quantity then
      notices[#notices + 1] = {'usage.threshold', string.sub(name, 1, 4), after, percent, included}
    end
  end
  return notices
end
