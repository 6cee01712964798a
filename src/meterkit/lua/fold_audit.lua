#!lua
-- fold_audit: replaces the newest entries of a too long audit stream by sums for each period, meter, class and customer.
-- Totals stay exact; only single events are merged. The drainer reads the stream at its other end.
--
-- KEYS[1] stream  of the audit log    KEYS[2] hash  sums: PERIOD|METER CLASS|CUSTOMER to units; class 8: cost in
-- micro-units; class 9, MICROS/PER: units paid for at this price, see audit_usage
-- ARGV  1 largest length of the stream    last: the caller's clock (ms)
-- Reply the number of removed entries
local stream, sums = KEYS[1], KEYS[2]
local call, text, most, folded = redis.call, string.format, tonumber(ARGV[1]), {}
local excess = call('XLEN', stream) - most
if excess <= 0 then
  return 0
end

local function add_to_sum(begins_ms, customer, field, class, quantity)
  if quantity > 0 then
    call('HINCRBY', sums, text('%.0f|%s%s|%s', begins_ms, string.sub(field, 1, 4), class, customer), text('%.0f', quantity))
  end
end

local function add_classes(begins_ms, customer, field, ...)
  for class, quantity in ipairs({...}) do
    add_to_sum(begins_ms, customer, field, class, quantity)
  end
end

for _, entry in ipairs(call('XREVRANGE', stream, '+', '-', 'COUNT', math.min(excess, AUDIT_FOLDED))) do
  local id, fields = unpack(entry)
  local values = fields[1] == 'e' and {cmsgpack.unpack(fields[2])} or {}
  if values[1] == FORM then
    local _, _, _, customer, _, begins_ms, late, details = unpack(values)
    local priced = string.match(details, '^[^\n]*\n[^\n]*\n[^\n]*\n([^\n]*)') or ''
    for place = 9, #values, 7 do
      local field, included, granted, credited, overage, over_cap, reported = unpack(values, place, place + 6)
      local units = included + granted + credited + overage + over_cap
      add_classes(begins_ms, customer, field, included, granted, credited, overage, over_cap, reported, late ~= '' and units or 0)
      if units > 0 then
        local token = string.gsub(string.sub(field, 1, 4), '%-', '%%-')
        local cost, paid, price = string.match(priced, ' ' .. token .. ':(%d*):([oc]?)(%S*)')
        add_to_sum(begins_ms, customer, field, '8', tonumber(cost) or 0)
        add_to_sum(begins_ms, customer, field, '9,' .. (price or ''), paid == 'o' and overage or paid == 'c' and credited or 0)
      end
    end
    folded[#folded + 1] = id
  end
end
if folded[1] then
  call('XDEL', stream, unpack(folded))
end
return #folded
