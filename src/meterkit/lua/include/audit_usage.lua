-- audit_usage: enters what a settlement has recorded into its shard's stream of the audit log.
--   source, number: the settlement's producer and its number there; closed_period: the closed period (its
--   first instant, as text) that the usage belongs to, or nil; details: what else is known of it
--   noted: seven a meter: its field; units recorded as included, granted, credited, overage, beyond the cap; those that
--   go to Stripe under its own event
local function audit_usage(stream, source, number, customer, now, begins_ms, closed_period, details, noted)
  if noted[1] then
    redis.call('XADD', stream, '*', 'e',
      cmsgpack.pack(FORM, source, number, customer, now, begins_ms, closed_period or '', details, unpack(noted)))
  end
end
