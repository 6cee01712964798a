-- add_once: adds grants that are given once in a customer's life, at the first period on a plan that has them.
--   file: as `read_grants` returns it; once: {name without the period, target, quantity, priority, life (ms; 0: the period's
--   rest), start and end of that period (ms; nil: those of this one)} each; start_ms, end_ms: of this period
-- Puts into file.given the fields that say so from now on.
local function add_once(file, once, start_ms, end_ms, now)
  file.given = {}
  for _, grant in ipairs(once) do
    local name, target, quantity, priority, life, began_ms, ended_ms = unpack(grant)
    local field, start = 'once' .. string.sub(name, 2), began_ms or start_ms
    local finish = ended_ms or end_ms
    local expires = life == 0 and finish or start + life
    if not file.once[field] then
      file.once[field], file.given[field], file.due = true, string.format('%.0f', start), true
      if expires > now then
        file.list[#file.list + 1] = {
          name = name .. string.format(' %.0f', start), target = target, quantity = quantity, used = 0, priority = priority,
          effective = start, expires = expires, created = start, until_ms = math.max(expires, finish), raised = quantity,
        }
      end
    end
  end
end
