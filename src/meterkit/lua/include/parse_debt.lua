-- parse_debt: parses a debt, "owed since", or false: usage beyond a balance in money that is not repaid yet.
--   since: the instant (ms) of the last use beyond the balance
local function parse_debt(text)
  local owed, since = string.match(text or '0 0', '^(%d+) (%d+)$')
  return {owed = owed + 0, since = since + 0}
end
