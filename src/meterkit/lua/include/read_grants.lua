-- read_grants: the grants that a customer has on file. Nothing is written.
--   key: hash of
--     a grant's name to its text: units of a meter (m:NAME) or micro-credits of a credit (c:NAME), times in ms,
--     9000000000000000 for never; until: when it leaves the hash. What a plan gave stays for the whole period, too,
--     or it would be given again
--     "past TARGET" to "at quantity created": until when (ms) grants paid that have left, the quantity of the
--     newest of those, and when that was created
--     "d TARGET": a debt, see parse_debt
--     "balance": see grant_balance
-- Returns {found: whether there is anything at all, list: the grants, ended: those that are to leave, past: by
-- target, debts: by target, repaid: see plan_repayment, due: whether anything is to be written down, first: when the oldest that
-- is known was created (ms)}; in no order.
--include parse_grant
--include parse_debt
local function read_grants(key, now)
  local list, ended, past, debts, first = {}, {}, {}, {}, NEVER_MS
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name = fields[i]
    local kind = string.sub(name, 1, 2)
    if kind == 'a ' or kind == 'p ' then
      local grant = parse_grant(name, fields[i + 1])
      local into = grant.until_ms <= now and ended or list
      into[#into + 1], first = grant, math.min(first, grant.created)
    elseif kind == 'd ' then
      debts[string.sub(name, 3)] = parse_debt(fields[i + 1])
    elseif kind == 'pa' then
      local at, quantity, created = string.match(fields[i + 1], '^(%d+) (%d+) (%d+)$')
      past[string.sub(name, 6)], first = {at = at + 0, quantity = quantity + 0, created = created + 0}, math.min(first, created + 0)
    end
  end
  return {
    found = #fields > 0, list = list, ended = ended, past = past, debts = debts, repaid = {}, due = #ended > 0, first = first,
  }
end
