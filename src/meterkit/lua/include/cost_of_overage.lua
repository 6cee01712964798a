-- cost_of_overage: what units beyond the overage that is counted may come to cost, in micro-units.
--   overage: of the meter; units: so many, which nothing covers; held: units that are held, those are among them
--   micros, per: see cost_of_units; rows: nil, or of prices by model each one, the highest first: {overage that is counted at
--   it, units that are held at it, micros, per}. Held units of no row may come to cost the highest.
-- It is not known which of the held units are covered: the others cost at most what the dearest of them do, and at most
-- what all of them do. A price is rounded up once, so each row may come to a micro-unit more than its share.
--include cost_of_units
local function cost_of_overage(overage, units, held, micros, per, rows)
  if not rows then
    return cost_of_units(overage + units, micros, per) - cost_of_units(overage, micros, per)
  end
  local unknown, all, most, parts = held, 0, 0, 0
  for _, row in ipairs(rows) do
    unknown = unknown - row[2]
  end
  for i, row in ipairs(rows) do
    local counted, there = row[1], row[2] + (i == 1 and math.max(0, unknown) or 0)
    local part = math.min(there, units)
    all = all + cost_of_units(counted + there, row[3], row[4]) - cost_of_units(counted, row[3], row[4])
    most, units = most + cost_of_units(part, row[3], row[4]), units - part
    parts = parts + (there > 0 and 1 or 0)
  end
  all = all + (unknown > 0 and #rows or 0)
  return math.min(all, most + (parts > 1 and most > 0 and parts or 0))
end
