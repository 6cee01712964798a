-- parse_debt: a debt: what was used beyond a balance in money and is not repaid. From its text "owed since", or false.
--   since: the instant (ms) of the last use beyond the balance
local function parse_debt(text)
  local owed, since = string.match(text or '0 0', '^(%d+) (%d+)$')
  return {owed = owed + 0, since = since + 0}
end
