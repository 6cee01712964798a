#!lua
-- mark_late_usage: marks usage late that Stripe did not have when others changed the prices of a subscription: it can no
-- longer reach the invoice line of its price.
-- - If the price is another one now, an invoice item bills the usage at the ended price (see queue_item).
-- - Otherwise, it counts as t of its period. If the current plan bills the meter, the usage is recorded again, as overage
--   (or included) and as late, and becomes pending: the new price is the same.
--
-- KEYS[1] hash  counters    KEYS[2] hash  totals    KEYS[3] list  ledger of changes    KEYS[4] zset  dirty
-- KEYS[5] hash  intents     KEYS[6] zset  outbox    KEYS[7] zset  parked    KEYS[8] zset  compare
-- KEYS[9] zset  invoice items    KEYS[10] stream  optional: of the audit log
-- ARGV  1 the customer    2 nonce: 32 new hex digits
--       3 a JSON object:
--         meters: token to the class in which usage is recorded again (empty: none), name, and ended price in words
--         items: token to the terms of an invoice item, see queue_item
--         pending: tokens of the meters whose pending units are late
--         intents: late intents that Stripe does not have: {identifier, text as it was read} each
--         back: the same of corrections; nil: none
--         since: token to the units sealed after the change
--         labels: of the ended prices, see end_price_segment
--         rev: of the state before the change; empty: the usage was found to be late afterwards
--         changed: first minute that usage pending after the change can have (ms, as text)
--         cause: for the ledger
--       last: the caller's clock (ms)
-- PERIOD|n: rev of the last change that this script has handled. Each change is handled once.
-- Reply {OK, now, PERIOD|token, late units, outcome, ...}
--                                outcome: BILLED_IN_PERIOD, BILLED_BY_ITEM, CORRECTION_UNDONE or NOT_BILLED
--       the error DAMAGED        a stored number is invalid: nothing is done
--include server_ms
--include read_counters
--include read_numbers
--include pack_meter
--include sorted_keys
--include count_field
--include queue_item
--include end_price_segment
--include append_history
--include audit_usage
local counters_key, totals_key, history_key, dirty_key, intents_key, outbox_key, parked_key, compare_key, items_key,
  audit_key = unpack(KEYS)
local customer, nonce = unpack(ARGV)
local asked, now, call = cjson.decode(ARGV[3]), server_ms(ARGV[#ARGV]), redis.call
local totals, head, meters, damaged = {}, read_counters(counters_key)
damaged = damaged or read_numbers(totals_key, totals, {'|....[pqlkdxtaQLK]$'})
if damaged then
  return redis.error_reply('DAMAGED a customer cannot be read: no whole numbers in field ' .. damaged)
end
local outcomes = {[0] = 'not billed', 'billed at the price of now', 'billed by an invoice item'}
local text, open_period = string.format, head and string.format('%.0f', head.begins_ms) or ''
local late, reply, is_due = {}, {OK, now}, false
if head and asked.rev ~= '' and call('HGET', totals_key, open_period .. '|n') == asked.rev then
  return reply
end

local function add_late(period, token, quantity)
  local name = period .. '|' .. token
  late[name] = (late[name] or 0) + quantity
end

for _, token in ipairs(asked.pending) do
  if meters[token] and meters[token].pending > 0 then
    add_late(open_period, token, meters[token].pending)
    meters[token].pending = 0
  end
  -- Pending units of a closed period would be sealed for its draft, which may have the new price by now.
  for _, name in ipairs(sorted_keys(totals)) do
    local period = string.match(name, '^(%d+)|' .. token .. 'p$')
    local has_one_price = period and not totals[period .. '|' .. token .. 's'] and not totals[open_period .. '|' .. token .. 'y']
    if has_one_price and asked.items[token] then
      add_late(period, token, tonumber(totals[name]))
      call('HDEL', totals_key, name)
    end
  end
end
local function remove(id, read, use)
  local intent = cjson.decode(read)
  if call('HGET', intents_key, id) == read and (use == add_late or intent.period == open_period) then
    local counted, value = count_field(intent, intent.state)
    call('HINCRBY', totals_key, counted, '-' .. value)
    call('HDEL', intents_key, id)
    for _, key in ipairs({outbox_key, parked_key, compare_key}) do
      call('ZREM', key, id)
    end
    use(intent.period, intent.meter, tonumber(value))
  end
end

local function restore(period, token, quantity)
  local name, meter_name, meter = period .. '|' .. token, asked.meters[token][2], meters[token]
  local missed = late[name] or 0
  local left = quantity - math.min(quantity, missed)
  late[name] = missed > quantity and missed - quantity or nil
  if left > 0 and meter then
    meter.overage = meter.overage + left
    if audit_key then
      audit_usage(audit_key, nonce, #reply, customer, now, head.begins_ms, nil, '', {token .. 'm', 0, 0, 0, left, 0, left})
    end
    append_history(history_key, {{'correction', text('%.0f', now), text('%.0f of %s taken back', left, meter_name),
      'recorded again: Stripe did not have it when the price changed', asked.cause}})
    reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = name, text('%.0f', left), CORRECTION_UNDONE
  end
end

for _, one in ipairs(asked.intents) do
  remove(one[1], one[2], add_late)
end
-- A correction that Stripe does not have yet cannot lower the line of the ended price. It lowers the late units, and the
-- rest of its units is recorded again.
for _, one in ipairs(asked.back or {}) do
  remove(one[1], one[2], restore)
end
local ended = {}
for token, meter in pairs(meters) do
  local since, again = asked.since[token] or 0, asked.items[token] and 0 or late[open_period .. '|' .. token] or 0
  ended[token] = {overage = math.max(0, meter.overage - since - again), since = since}
end
if head then
  end_price_segment(totals_key, open_period, ended, asked.labels)
end
for _, name in ipairs(sorted_keys(late)) do
  local period, token = string.match(name, '^(.*)|(....)$')
  local class, meter_name, price = unpack(asked.meters[token])
  local quantity, value, meter = late[name], text('%.0f', late[name]), meters[token] or read_meter(EMPTY_METER)
  local item, is_billed = asked.items[token], head and class ~= '' and math.max(meter[class], meter.late, meter.pending) + quantity <= MOST
  if item then
    local own = {customer = customer, period = period, meter = token, name = meter_name, value = value}
    for field, known in pairs(item) do
      own[field] = known
    end
    own.till = period ~= open_period and totals[period .. '|e'] or item.till
    queue_item(items_key, totals_key, nonce .. '-' .. #reply, own, now)
  else
    call('HINCRBY', totals_key, name .. 't', value)
  end
  if is_billed and not item then
    meter[class], meter.late, meter.pending = meter[class] + quantity, meter.late + quantity, meter.pending + quantity
    meters[token], is_due = meter, true
    if audit_key then
      local within = class == 'included' and quantity or 0
      audit_usage(audit_key, nonce, #reply, customer, now, head.begins_ms, period, '',
        {token .. 'm', within, 0, 0, quantity - within, 0, quantity})
    end
  end
  local outcome = is_billed and BILLED_IN_PERIOD or NOT_BILLED
  outcome = item and BILLED_BY_ITEM or outcome
  append_history(history_key, {{'late', text('%.0f', now), period .. ' ' .. value .. ' of ' .. meter_name .. price,
    outcomes[outcome], asked.cause}})
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = name, value, outcome
end
for token, meter in pairs(meters) do -- Also meters whose pending usage a correction has taken back in full.
  call('HSET', counters_key, token .. 'm', pack_meter(meter))
end
if is_due then -- Counters with pending usage do not expire.
  call('HSET', counters_key, 'h', cmsgpack.pack(FORM, head.seen_ms, head.begins_ms, head.ends_ms, NEVER_MS, head.rev))
  call('PERSIST', counters_key)
  call('ZADD', dirty_key, now, customer)
end
if head and asked.rev ~= '' then
  call('HSET', totals_key, open_period .. '|n', asked.rev, open_period .. '|y', asked.changed)
end
call('PEXPIRE', totals_key, FOUR_HUNDRED_DAYS_MS)
return reply
