-- read_meter: the numbers of a meter by their names, for scripts that need not be fast; nil where one of them is not
-- whole.
--include unpack_meter
--include unpack_extras
--include are_whole_numbers
local function read_meter(packed)
  local is_read, included, overage, pending, slot, held, held_before, extras = pcall(unpack_meter, packed, '')
  if not is_read or type(extras) ~= 'string' then
    return nil
  end
  local is_known, granted, credited, late, stamped_ms, over_cap, more = pcall(unpack_extras, extras)
  if not is_known or more
    or not are_whole_numbers(included, overage, granted, credited, over_cap, pending, late, slot, held, held_before, stamped_ms) then
    return nil
  end
  return {
    included = included, overage = overage, granted = granted, credited = credited, over_cap = over_cap,
    pending = pending, late = late, slot = slot, held = held, held_before = held_before, stamped_ms = stamped_ms,
  }
end
