-- sort_by_age: sorts a meter's prices by model, and the events that report its units, by their latest use, youngest first.
--   meters: see read_counters; rows: nil, or see lower_model_rows; events: {token of the event, ...} each
-- A row's slot is the overage that its source had with the row's latest units: settle writes it. A correction takes that
-- much back: the slots of rows are lowered with it, see lower_model_rows.
local function sort_by_age(meters, rows, events)
  local place, rank = {}, {}
  local function used_at(row)
    local meter = meters[row[1]]
    return meter and meter.overage > 0 and meter.slot or -1
  end
  for i, row in ipairs(rows or {}) do
    place[row[1]] = i
  end
  table.sort(rows or {}, function(one, other)
    local used, used_before = used_at(one), used_at(other)
    return used > used_before or used == used_before and place[one[1]] < place[other[1]]
  end)
  for i, row in ipairs(rows or {}) do
    rank[row[2]] = rank[row[2]] or i
  end
  for i, event in ipairs(events) do
    rank[event[1]] = rank[event[1]] or #(rows or {}) + i
  end
  table.sort(events, function(one, other)
    return rank[one[1]] < rank[other[1]]
  end)
end
