-- check_budgets: whether what a customer may come to spend stays within budgets.
--   spend: {budgets, priced}; budgets: {the place of the field that counts it, window (ms; 0: the period), how much
--   (micro-units), micro-units in a minor unit} each; priced: each meter whose units cost something, {the place of its
--   field, included, micro-units for each so many units, so many units, which of the ceilings it is or 0, its target or '',
--   its place among the backed or 0, and with prices by model: rows: {the place of a field, micro-units, units} each, the
--   highest price first; the place of the requested one}
--   covered(target, backed): how many units grants and credits pay of a meter; nil: there are none
--   fields: the counters' that were read; terms, at: of the first ceiling; is_repeat: whether nothing is asked; takes:
--   whether what is asked is held; report_policy: see decide
-- What is held of a meter beyond what included, grants and credits cover may be spent, whichever request comes to it.
-- It tells of each budget what is left and all of it, in minor units; in micro-units what is left without holds, what is
-- held, what is asked.
-- Returns whether a budget refuses what is asked.
--include unpack_meter
--include live_holds
--include unpack_rate
--include advance_rate
--include cost_of_overage
local function check_budgets(spend, covered, fields, terms, at, now, is_repeat, takes, report_policy)
  local current_slot, held_before_it, needs, taking, refuses = math.floor(now / HOLD_SLOT_MS), 0, 0, 0, false
  for _, meter in ipairs(spend.priced) do
    local place, included, micros, per, nth, target, backed, rows, chosen = unpack(meter)
    local counted, overage, _, slot, held, held_before = unpack_meter(fields[place], place)
    held, held_before = live_holds(current_slot, slot, held, held_before)
    local free = math.max(0, included - counted) + (covered and target ~= '' and covered(target, backed) or 0)
    local at_prices = rows and {}
    for i, row in ipairs(rows or {}) do
      local _, beyond, _, row_slot, row_held, row_before = unpack_meter(fields[row[1]], row[1])
      row_held, row_before = live_holds(current_slot, row_slot, row_held, row_before)
      at_prices[i] = {beyond, row_held + row_before, row[2], row[3]}
    end
    local function owed(more)
      local all = held + held_before + more
      if rows then
        at_prices[chosen][2] = at_prices[chosen][2] + more
      end
      local found = cost_of_overage(overage, math.max(0, all - free), all, micros, per, at_prices)
      if rows then
        at_prices[chosen][2] = at_prices[chosen][2] - more
      end
      return found
    end
    local owed_before = owed(0)
    held_before_it = held_before_it + owed_before
    if nth > 0 and not is_repeat then
      local needed, taken = struct.unpack('<dd', terms, at + 32 * (nth - 1) + 16)
      needs, taking = needs + owed(needed) - owed_before, taking + (takes and owed(taken) - owed_before or 0)
    end
  end
  for _, budget in ipairs(spend.budgets) do
    local place, window, micros, unit = unpack(budget)
    local spent
    if window > 0 then
      local slot, counted = unpack_rate(fields[place], place)
      _, spent = advance_rate(FIXED, window, 0, now, slot, counted, 0)
    else
      local included, overage = unpack_meter(fields[place], place)
      spent = included + overage
    end
    local left = micros - spent - held_before_it
    refuses = refuses or needs > 0 and needs > left
    report_policy(math.floor((left - taking) / unit), math.max(1, micros / unit), micros - spent, held_before_it, needs)
  end
  return refuses
end
