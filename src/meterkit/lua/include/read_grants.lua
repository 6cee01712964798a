-- read_grants: reads the stored grants of a customer. Writes nothing.
--   key: hash of
--     a grant's name to its text: units of a meter (m:NAME) or micro-credits of a credit (c:NAME), times in ms,
--     9000000000000000 for never; until: when it leaves the hash. A plan's grant stays for the whole period;
--     otherwise it would be granted again
--     "past TARGET" to "at quantity created": until when (ms) grants that have left the hash paid; quantity of
--     the newest of them, and when it was created
--     "once TARGET ID": the grant with this id was given; since when (ms)
--     "d TARGET": a debt, see parse_debt
--     "written": first instant of the latest period in which all that was due was stored (ms), and the history of plans
--     by which it was, if any
--     "balance": see grant_balance
-- Returns {found: whether the hash has any field, list: the grants, ended: those that must leave the hash, past: by
-- target, debts: by target, once: set of such fields, repaid: see plan_repayment, due: whether anything must be written,
-- first: when the oldest known grant was created (ms), newest: the latest instant by which what the plan gave was stored
-- (ms), history: see add_recurring_grants}; in no order.
--include parse_grant
--include parse_debt
local function read_grants(key, now)
  local list, ended, past, debts, once, first, newest, history = {}, {}, {}, {}, {}, NEVER_MS, 0, ''
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local name = fields[i]
    local kind = string.sub(name, 1, 2)
    if kind == 'a ' or kind == 'p ' or kind == 'o ' then
      local grant = parse_grant(name, fields[i + 1])
      local into = grant.until_ms <= now and ended or list
      into[#into + 1], first = grant, math.min(first, grant.created)
      newest = kind == 'p ' and math.max(newest, grant.effective) or newest
    elseif kind == 'd ' then
      debts[string.sub(name, 3)] = parse_debt(fields[i + 1])
    elseif kind == 'pa' then
      local at, quantity, created = string.match(fields[i + 1], '^(%d+) (%d+) (%d+)$')
      past[string.sub(name, 6)], first = {at = at + 0, quantity = quantity + 0, created = created + 0}, math.min(first, created + 0)
    elseif kind == 'on' then
      once[name] = true
    elseif kind == 'wr' then
      local start, had = string.match(fields[i + 1], '^(%d+) ?(%S*)')
      newest, history = math.max(newest, start + 0), had
    end
  end
  return {
    found = #fields > 0, list = list, ended = ended, past = past, debts = debts, repaid = {}, due = #ended > 0, first = first,
    once = once, newest = newest, history = history,
  }
end
