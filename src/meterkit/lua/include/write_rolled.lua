-- write_rolled: writes down what of grants has lived on, what was cut, and which grants were given for once and all.
--   ledger: hash; file: see roll_over and add_once; set: arguments of the HSET of the grants
-- Returns whether there was any of that.
local function write_rolled(ledger, file, set)
  local call, is_any = redis.call, false
  for line, quantity in pairs(file.rolled or {}) do
    call('HINCRBY', ledger, line, string.format('%.0f', quantity))
    is_any = true
  end
  for name, quantity in pairs(file.cut or {}) do
    local line = 'expire ' .. name
    local known = string.match(call('HGET', ledger, line) or '0', '^%d+')
    call('HSET', ledger, line, string.format('%.0f', known + quantity))
    is_any = true
  end
  for field, start in pairs(file.given or {}) do
    set[#set + 1], set[#set + 2], is_any = field, start, true
  end
  return is_any
end
