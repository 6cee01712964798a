-- burn: pays recorded units with grants, then with credits.
--   purse: {recurring, pays, low}; pays: a meter each, {its name, its target, its credit's target or '', cost
--   (micro-credits a unit)}; low: a credit's target to the share (%) of its last grant below which it is low
-- Nothing is written until `keep` is called.
-- Returns pay(i, rest): how many of the units of meter i grants pay, how many credits; keep(): writes what was paid, and
-- returns the credits whose balance has become low.
local function burn(now, purse)
  local list, burned = grants(KEYS[6], purse.recurring, now), {}
  local start = period(now)
  local function left_of(target)
    local left = 0
    for _, grant in ipairs(list) do
      if grant.target == target and grant.effective <= now and now < grant.expires then
        left = left + (grant.quantity - grant.used)
      end
    end
    return left
  end
  local before = {}
  for target in pairs(purse.low) do
    before[target] = left_of(target)
  end
  local function use(target, quantity, meter)
    for _, grant in ipairs(list) do
      if quantity > 0 and grant.target == target and grant.effective <= now and now < grant.expires then
        local part = math.min(quantity, grant.quantity - grant.used)
        if part > 0 then
          grant.used, grant.used_at, grant.changed, quantity = grant.used + part, now, true, quantity - part
          local entry = 'burn ' .. meter .. ' ' .. string.format('%.0f', start) .. ' ' .. grant.name
          burned[entry] = (burned[entry] or 0) + part
        end
      end
    end
  end
  local function pay(i, rest)
    local meter, target, credit, cost = unpack(purse.pays[i])
    local granted, credited = math.min(rest, left_of(target)), 0
    use(target, granted, meter)
    if cost > 0 then
      credited = math.min(rest - granted, math.floor(left_of(credit) / cost))
      use(credit, credited * cost, meter)
    end
    return granted, credited
  end
  local function keep()
    local call, low, last, until_ms, grew = redis.call, {}, {}, 0, false
    for _, grant in ipairs(list) do
      if grant.raised > 0 then
        grew = true
        local known = string.format('%.0f', grant.quantity - grant.raised)
        local terms = string.format('%.0f %.0f %.0f %.0f', grant.priority, grant.effective, grant.expires, grant.created)
        if call('HSETNX', KEYS[7], 'grant ' .. grant.name, string.format('%.0f ', grant.quantity) .. terms) == 0 then
          call('HINCRBY', KEYS[7], 'raise ' .. known .. ' ' .. grant.name, string.format('%.0f', grant.raised))
        end
      end
      if grant.over then
        call('HDEL', KEYS[6], grant.name)
        if grant.quantity > grant.used then
          -- A plan's name may come back, with a longer period that began then.
          local line = 'expire ' .. grant.name
          local before = string.match(call('HGET', KEYS[7], line) or '0', '^%d+')
          call('HSET', KEYS[7], line, string.format('%.0f %.0f', before + grant.quantity - grant.used, grant.expires))
        end
      elseif grant.changed or grant.raised > 0 then
        call('HSET', KEYS[6], grant.name, string.format('%s %.0f %.0f %.0f %.0f %.0f %.0f %.0f', grant.target,
          grant.quantity, grant.used, grant.priority, grant.effective, grant.expires, grant.created, grant.used_at))
      end
      until_ms = math.max(until_ms, grant.expires)
      if not last[grant.target] or grant.created >= last[grant.target].created then
        last[grant.target] = grant
      end
    end
    for entry, quantity in pairs(burned) do
      call('HINCRBY', KEYS[7], entry, string.format('%.0f', quantity))
    end
    if grew then
      for i = 6, 7 do
        if ARGV[1] == '1:0' then
          call('PEXPIREAT', KEYS[i], until_ms + 3456000000)
        else
          call('PERSIST', KEYS[i])
        end
      end
    end
    for target, share in pairs(purse.low) do
      local threshold = last[target] and last[target].quantity / 100 * share or 0
      if before[target] >= threshold and left_of(target) < threshold then
        low[#low + 1] = target
      end
    end
    return low
  end
  return pay, keep
end
