-- count_allowed: counts the requests of an allotment that have room, if grants, credits or budgets count, too. It decides
-- the last request as `decide` does, with all requests before it in flight: if that one is allowed, all are. Otherwise it
-- tries half as many.
--   grants_key: hash; options: see decide; fields: of the counters, as read; changed here
--   terms, at: the ceilings in the terms; policies, least, share: see allot_requests; rate_count, ceiling_count: of policies
--   requests: at most; start_ms, end_ms: of the current period
-- Returns the number of requests (below `least`: none is allowed), and when balances change next (ms). It sets `left` of
-- each policy to what is left for the last request, and appends budgets and other holds to the policies.
--include pack_taken
local function count_allowed(
  grants_key, options, fields, terms, at, policies, rate_count, ceiling_count, requests, least, share, now, start_ms, end_ms)
  local own_left, held, backing, check_spend = {}, {}, nil, nil
  if options.asked then -- Included here, so that other calls do not pay for creating the functions.
--include extend_ceilings
--include extra_holds
    backing = extend_ceilings(grants_key, fields, options, now, start_ms, end_ms)
    held = extra_holds(fields, options, policies, rate_count, math.floor(now / HOLD_SLOT_MS))
  end
  if options.spend then -- As above.
--include check_budgets
    check_spend = check_budgets
  end
  local extra_count = #held
  for nth = 1, ceiling_count do
    local policy = policies[rate_count + nth]
    own_left[nth] = policy[2]
    held[extra_count + nth] = policy
  end
  local function allows(times)
    local is_within, count = true, rate_count + ceiling_count
    local function report_policy(left, total, available, held_before, needed)
      count = count + 1
      is_within = is_within and held_before + needed <= available
      policies[count] = {0, left, total, 0}
    end
    for _, policy in ipairs(held) do
      fields[policy[7]] = pack_taken(policy, times - 1)
    end
    for i, meter in ipairs(options.backed or {}) do
      options.taken[i] = meter[6]
    end
    for nth = 1, ceiling_count do
      local policy, left = policies[rate_count + nth], own_left[nth]
      if backing and nth <= backing.count then
        left = left + backing.units_of(nth)
        backing.claim(nth, policy[1])
      end
      policy[2] = left
      is_within = is_within and times * policy[1] <= left
    end
    if check_spend then
      check_spend(options.spend, backing, fields, terms, at, now, false, true, report_policy)
    end
    return is_within
  end
  for _ = 1, requests do
    if requests < least or allows((requests - 1) * share + 1) then
      break
    end
    requests = math.floor(requests / 2)
  end
  allows(requests)
  for place = 1, extra_count do
    policies[#policies + 1] = held[place]
  end
  return requests, backing and backing.changes_at or NEVER_MS
end
