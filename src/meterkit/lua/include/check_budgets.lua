-- check_budgets: checks what a customer may come to spend against its budgets.
--   spend.budgets: each {place of the field that counts what was spent, window (ms; 0: the period), amount (micro-units),
--   micro-units in a minor unit}
--   spend.priced: each meter whose units cost money: {place of its field, included, micro-units of so many units, so many
--   units, number of its ceiling or 0, its target or '', its place in options.backed or 0}; with prices by model also its
--   rows, the highest price first: {place of the row's field, micro-units, units} each; and the number of the row of the
--   requested model
--   backing: what grants and credits add, see extend_ceilings; or nil
--   fields: what was read of the counters; terms, ceilings_at: the ceilings in the terms, see decide
--   is_repeat: whether the request needs nothing; is_counting: whether it holds its quantity; report_policy: see decide
-- Held units of a meter beyond what included units, grants and credits cover may come to cost money, whichever request
-- uses them.
-- Reports of each budget what is left and the whole, in minor units; and in micro-units what is left without holds, what
-- is held, what is needed.
-- Returns whether a budget refuses.
--include unpack_meter
--include live_holds
--include unpack_rate
--include advance_rate
--include cost_of_overage
local function check_budgets(spend, backing, fields, terms, ceilings_at, now, is_repeat, is_counting, report_policy)
  local current_slot, refuses = math.floor(now / HOLD_SLOT_MS), false
  local held_cost, needed_cost, taken_cost = 0, 0, 0
  for _, meter in ipairs(spend.priced) do
    local place, included, micros, per_units, nth, target, backed_place, rows, chosen = unpack(meter)
    local counted, overage, _, slot, held, held_before = unpack_meter(fields[place], place)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    local free_units = math.max(0, included - counted)
    if backing and target ~= '' then
      free_units = free_units + backing.covered(target, backed_place)
    end
    local priced_rows = rows and {}
    for i, row in ipairs(rows or {}) do
      local row_place, row_micros, row_per_units = unpack(row)
      local _, row_overage, _, row_slot, row_held, row_held_before = unpack_meter(fields[row_place], row_place)
      row_held, row_held_before = live_holds(current_slot, row_slot, row_held, row_held_before)
      priced_rows[i] = {row_overage, row_held + row_held_before, row_micros, row_per_units}
    end
    local function cost_of_holds(more_units)
      local units = held + held_before + more_units
      local row = rows and priced_rows[chosen]
      if row then
        row[2] = row[2] + more_units
      end
      local cost = cost_of_overage(overage, math.max(0, units - free_units), units, micros, per_units, priced_rows)
      if row then
        row[2] = row[2] - more_units
      end
      return cost
    end
    local cost_before = cost_of_holds(0)
    held_cost = held_cost + cost_before
    if nth > 0 and not is_repeat then
      local _, _, needed, quantity = struct.unpack('<dddd', terms, ceilings_at + CEILING_BYTES * (nth - 1))
      needed_cost = needed_cost + cost_of_holds(needed) - cost_before
      if is_counting then
        taken_cost = taken_cost + cost_of_holds(quantity) - cost_before
      end
    end
  end
  for _, budget in ipairs(spend.budgets) do
    local place, window, micros, unit = unpack(budget)
    local spent
    if window > 0 then
      local slot, counted = unpack_rate(fields[place], place)
      _, spent = advance_rate(FIXED_WINDOW, window, 0, now, slot, counted, 0)
    else
      local included, overage = unpack_meter(fields[place], place)
      spent = included + overage
    end
    local left = micros - spent - held_cost
    refuses = refuses or needed_cost > 0 and needed_cost > left
    report_policy(math.floor((left - taken_cost) / unit), math.max(1, micros / unit), micros - spent, held_cost, needed_cost)
  end
  return refuses
end
