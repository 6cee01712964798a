-- count_allowed: for how many requests ceilings have room where grants, credits or budgets count, too. The last request is
-- weighed as decide weighs one, while all before it are in flight: where it is allowed, they are. Else half are tried.
--   grants_key: hash; further: see decide; fields: the counters' that were read, which are changed; terms, at: of the
--   first ceiling; policies: see allot_requests; rates, ceilings: how many of these; requests: the most; least, share: see allot_requests;
--   starts, finishes: of the period of `now` (ms)
-- Returns for how many requests there is room, fewer than `least` for none; when the balance changes by itself (ms). The
-- policies get what is left to the last request; behind them come budgets, and what else is held.
--include pack_taken
local function count_allowed(
  grants_key, further, fields, terms, at, policies, rates, ceilings, requests, least, share, now, starts, finishes)
  local changes_at, own, backs, held, more, claim, covered, weigh = NEVER_MS, {}, 0, {}, nil, nil, nil, nil
  if further.asked then -- Others do not pay for making these functions.
--include extend_ceilings
--include extra_holds
    backs = #further.asked
    more, claim, _, covered, changes_at = extend_ceilings(grants_key, fields, further, now, starts, finishes)
    held = extra_holds(fields, further, policies, rates, math.floor(now / HOLD_SLOT_MS))
  end
  if further.spend then -- As above.
--include check_budgets
    weigh = check_budgets
  end
  local besides = #held
  for nth = 1, ceilings do
    own[nth], held[besides + nth] = policies[rates + nth][2], policies[rates + nth]
  end
  local function allows(times)
    local is_within, n = true, rates + ceilings
    local function report_policy(left, whole, free, before, asked)
      n, is_within = n + 1, is_within and before + asked <= free
      policies[n] = {0, left, whole, 0}
    end
    for _, told in ipairs(held) do
      fields[told[7]] = pack_taken(told, times - 1)
    end
    for i, meter in ipairs(further.backed or {}) do
      further.taken[i] = meter[6]
    end
    for nth = 1, ceilings do
      local told = policies[rates + nth]
      told[2] = own[nth] + (nth <= backs and more(nth) or 0)
      is_within = is_within and times * told[1] <= told[2]
      if nth <= backs then
        claim(nth, told[1])
      end
    end
    if weigh then
      weigh(further.spend, covered, fields, terms, at, now, false, true, report_policy)
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
  for place = 1, besides do
    policies[#policies + 1] = held[place]
  end
  return requests, changes_at
end
