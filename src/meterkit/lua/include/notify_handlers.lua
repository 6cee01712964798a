-- notify_handlers: queues notices of thresholds that a settlement crossed, and of balances that became low.
--   notices_key: stream; terms, at, count, fields, hset: see crossed_thresholds; keep_grants: see pay_with_grants, or nil
--   begins_ms, ends_ms: of the period
-- Returns 'notice' if there is one, otherwise nil.
--include crossed_thresholds
--include queue_notices
local function notify_handlers(notices_key, customer, terms, at, count, fields, hset, keep_grants, now, begins_ms, ends_ms)
  local notices = crossed_thresholds(terms, at, count, fields, hset)
  if keep_grants then
    notices = keep_grants(notices)
  end
  return queue_notices(notices_key, customer, notices, now, begins_ms, ends_ms)
end
