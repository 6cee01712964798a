-- cost_of_units: what so many units cost, in micro-units, rounded up: `micros` for each `per`. `micros * per` is at most MOST.
local function cost_of_units(units, micros, per)
  local whole = math.floor(units / per)
  return math.min(MOST, whole * micros + math.ceil((units - whole * per) * micros / per))
end
