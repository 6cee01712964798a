-- spend_grants: spends quantities of a customer's grants, in the order in which grants pay. Writes nothing.
--   key: hash, the grants; balances: as `grant_balance` returns it
-- Of the grants only the one that pays first is read, unless it is used up. Returns spend(target, quantity, meter);
-- the quantity must be left. And list_payments(): the grants that paid, by name, and ledger lines to the amounts paid.
--include read_grants
--include pays_before
local function spend_grants(key, balances, start_ms, now)
  local paying, burned, queues, is_over = {}, {}, {}, false
  local function read()
    balances.file, queues = read_grants(key, now), {}
    balances.debts = balances.file.debts
    for i, grant in ipairs(balances.file.list) do
      balances.file.list[i] = paying[grant.name] or grant
    end
  end
  local function queue_of(target)
    local found = queues[target] or {}
    if not queues[target] and balances.file then
      for _, grant in ipairs(balances.file.list) do
        if grant.target == target and grant.effective <= now and now < grant.expires then
          found[#found + 1] = grant
        end
      end
      table.sort(found, pays_before)
    elseif not queues[target] then
      local head = balances.sums[target].head
      found[1] = parse_grant(head, redis.call('HGET', key, head))
    end
    queues[target] = found
    return found
  end
  local function spend_from(target, quantity, meter)
    for _, grant in ipairs(queue_of(target)) do
      local part = math.min(quantity, grant.quantity - grant.used)
      if part > 0 then
        grant.used, grant.changed, quantity = grant.used + part, true, quantity - part
        is_over, paying[grant.name] = is_over or grant.used == grant.quantity, grant
        local line = string.format('burn %s %.0f %s', meter, start_ms, grant.name)
        burned[line] = (burned[line] or 0) + part
      end
    end
    return quantity
  end
  local function spend(target, quantity, meter)
    if quantity > 0 then
      balances.sums[target].left = balances.sums[target].left - quantity
      local rest = spend_from(target, quantity, meter)
      if rest > 0 then
        read()
        spend_from(target, rest, meter)
      end
    end
  end
  local function list_payments()
    if is_over and not balances.file then
      read()
    end
    return paying, burned
  end
  return spend, list_payments
end
