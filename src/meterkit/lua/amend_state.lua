#!lua
-- amend_state: replaces a customer's state, if it is still the one that was read. The next decision of every
-- process sees the new rev. Pending usage moves with the link: it waits for the seal, or for another link.
-- Changes that matter to the customer are entered into the ledger, and queued as notices for the app's handlers.
--
-- KEYS[1] hash  counters    KEYS[2] hash  state    KEYS[3] set  customers with state
-- KEYS[4] zset  dirty       KEYS[5] zset  unlinked    KEYS[6] zset  turns: customers by when the clock changes them
-- KEYS[7] list  ledger of changes    KEYS[8] stream  notices    KEYS[9] hash  levels of gauges
-- KEYS[10] hash  totals of closed periods and deliveries    KEYS[11] zset  gauges above what is included
-- ARGV  1 the rev that was read   2 the new rev   3 the new state (JSON)
--       4 the customer   5 linked (0: no; 1: yes; 2: from now on)   6 now: when to seal what was waiting for the link (ms)
--       7 the terms reported last, as they were read (JSON, empty: none)    8 the active terms now
--       9 when the clock changes these terms (ms; 0: never)
--       10 a JSON object:
--         entries: see append_history
--         notices: {kind, data (JSON)} each
--         gauges: {name, included in its unit from now on (-1: unlimited)} each
--         ended: at (ms, as text); labels of the prices that end then (see end_price_segment); switches: see is_by_lines;
--         is_free: whether the period costs nothing until then; prices: labels from now on, by token, where invoice lines
--         bill the usage. The price at which the latest units were counted may be stored; see follow_prices. Empty: it is
--         forgotten, as the currency is another one.
--         A cut in progress has ended them already
--         period: start and end (ms) of the state's current period. If the counters' period goes on in it, it gets this
--         end: after its former end, its counts would begin anew
--         names: token to the name of its meter, where the customer is linked from now on
--       last: the caller's clock (ms)
-- Reply {OK, expired...}      of a link: usage that it is too late for, see expire_unlinked
--       {CHANGED, rev, state}    another process was faster: nothing is done
--       an error                 the counters or a level are invalid: nothing is done
--include unpack_head
--include restate_levels
--include server_ms
--include append_history
--include queue_notice
--include read_counters
--include end_price_segment
--include expire_unlinked
--include is_by_lines
--include wait_for_link
local counters_key, state_key, customers_key, dirty_key, unlinked_key, turns_key, history_key, notices_key, levels_key,
  totals_key, over_key = unpack(KEYS)
local read_rev, rev, state, customer, linked, seal_at_ms, read_terms, terms, turn_ms, changes_text = unpack(ARGV)
local call, changes = redis.call, cjson.decode(changes_text)
local found = call('HMGET', state_key, 'rev', 'data', 'force')
if (found[1] or NO_STATE) ~= read_rev or (found[3] or '') ~= read_terms then
  return {CHANGED, found[1] or NO_STATE, found[2] or ''}
end
-- Before the first write: it fails if the counters are not a hash.
local head = call('HGET', counters_key, 'h')
local seen_ms, begins_ms, ends_ms, expires_ms = unpack_head(head)
local now = server_ms(ARGV[#ARGV])
restate_levels(levels_key, over_key, customer, changes.gauges, now)
local labels, prices, ended_ms = changes.ended.labels, changes.ended.prices or {}, tonumber(changes.ended.at)
if head and (next(labels) or next(prices)) and begins_ms <= ended_ms then
  local period, _, meters = string.format('%.0f', begins_ms), read_counters(counters_key)
  for token, label in pairs(prices) do
    local counted = call('HGET', totals_key, period .. '|' .. token .. 'Y')
    if counted then
      labels[token] = nil
    end
    if counted and label ~= counted then
      call('HDEL', totals_key, period .. '|' .. token .. 'Y')
      if label ~= '' then
        labels[token] = counted
      end
    end
  end
  if begins_ms == ended_ms then
    store_price_labels(totals_key, period, labels)
  elseif meters and tonumber(call('HGET', totals_key, period .. '|w') or '0') <= now then
    if changes.ended.is_free then
      store_price_labels(totals_key, period, labels)
      for token in pairs(labels) do
        call('HDEL', totals_key, period .. '|' .. token .. 's')
        labels[token] = FREE_LABEL
      end
    end
    end_price_segment(totals_key, period, meters, labels, is_by_lines(changes.ended.switches, period))
  end
end
call('HSET', state_key, 'rev', rev, 'data', state, 'force', terms)
call('SADD', customers_key, customer)
call('ZREM', turns_key, customer)
if turn_ms ~= '0' then
  call('ZADD', turns_key, turn_ms, customer)
end
append_history(history_key, changes.entries)
for _, notice in ipairs(changes.notices) do
  queue_notice(notices_key, customer, unpack(notice))
end
if next(changes.ended.switches or {}) then -- Usage that waits for the end of a period, which may be another one now.
  call('ZADD', dirty_key, 'XX', 'LT', seal_at_ms, customer)
end
local expired = linked == '2' and expire_unlinked(totals_key, history_key, changes.names, now) or {}
local is_waiting = linked ~= '0' and call('ZREM', unlinked_key, customer) == 1
if is_waiting or linked == '2' and call('EXISTS', totals_key) == 1 then -- Totals may have usage that was waiting before.
  call('ZADD', dirty_key, seal_at_ms, customer)
  if head then
    expires_ms = NEVER_MS
    call('PERSIST', counters_key)
  end
elseif linked == '0' and call('ZREM', dirty_key, customer) == 1 and head then
  expires_ms = math.max(ends_ms, seal_at_ms) + UNLINKED_KEPT_MS
  wait_for_link(unlinked_key, customer, expires_ms, now)
  call('PEXPIREAT', counters_key, expires_ms)
end
local start_ms, finish_ms = unpack(changes.period)
if head and math.max(now, seen_ms) < math.min(ends_ms, finish_ms) and start_ms < begins_ms + 2 * MINUTE_MS then
  ends_ms = finish_ms
  call('ZADD', unlinked_key, 'XX', 'GT', ends_ms + UNLINKED_KEPT_MS, customer)
end
if head then
  call('HSET', counters_key, 'h', cmsgpack.pack(FORM, seen_ms, begins_ms, ends_ms, expires_ms, rev))
end
return {OK, unpack(expired)}
