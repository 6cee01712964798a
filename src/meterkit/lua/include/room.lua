-- room: what grants and credits add to a customer's ceilings.
--   v: the fields that were read; purse: {mark, recurring, asked, backed}
--   asked: a ceiling each, {the meter's target, its place in backed or 0}
--   backed: each meter that shares a credit with an asked one, {the credit's target, cost (micro-credits a unit),
--   included, the meter's target, where v has its i, where its h, quantity asked of it if it has no ceiling}
-- What is held of a meter beyond what included and its grants cover claims the credit: two requests cannot be
-- admitted on the same one.
-- Returns more(k): units that ceiling k has beyond its own; claim(k, held): takes note of units held there; had(k): 1
-- where grants or credits stood behind the ceiling in this period, else 0.
local function room(now, v, purse)
  local start, finish = period(now)
  local held, none, taken = balance(KEYS[4], purse, start, finish, now, false), {left = 0, had = 0}, {}
  if held.file and held.file.found then
    redis.call('HSET', KEYS[4], 'balance', balance_text(held, purse, start))
  end
  local function of(target)
    return held.sums[target] or none
  end
  local function claim_of(meter, more)
    local covered = math.max(0, meter[3] - (v[meter[5]] or 0)) + of(meter[4]).left
    local held = (v[meter[6]] or 0) + (v[meter[6] + 1] or 0) + more
    return math.max(0, held - covered) * meter[2]
  end
  for i, meter in ipairs(purse.backed) do
    taken[i] = meter[7]
  end
  local function more(k)
    local place = purse.asked[k][2]
    local meter, units = purse.backed[place], of(purse.asked[k][1]).left
    if meter then
      local free = of(meter[1]).left
      for i, other in ipairs(purse.backed) do
        if i ~= place and other[1] == meter[1] then
          free = free - claim_of(other, taken[i])
        end
      end
      units = units + math.floor(math.max(0, free) / meter[2])
    end
    return units
  end
  local function claim(k, quantity)
    local place = purse.asked[k][2]
    taken[place] = (taken[place] or 0) + quantity
  end
  local function had(k)
    local meter = purse.backed[purse.asked[k][2]]
    return math.max(of(purse.asked[k][1]).had, meter and of(meter[1]).had or 0)
  end
  return more, claim, had
end
