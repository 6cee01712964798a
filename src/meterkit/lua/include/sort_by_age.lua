-- sort_by_age: sorts a meter's prices by model, and the events that report its units, by their latest use, youngest first.
--   counters_key: hash; source: token of the meter; rows: nil, or see lower_model_rows; events: {token of the event, ...} each
-- See note_row_use.
local function sort_by_age(counters_key, source, rows, events)
  local place, rank, unused = {}, {}, 0
  for token in string.gmatch(rows and redis.call('HGET', counters_key, source .. 'y') or '', '....') do
    unused = unused + 1
    place[token] = unused
  end
  for i, row in ipairs(rows or {}) do
    place[row[1]] = place[row[1]] or unused + i
  end
  table.sort(rows or {}, function(one, other)
    return place[one[1]] < place[other[1]]
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
