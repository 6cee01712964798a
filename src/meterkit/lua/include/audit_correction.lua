-- audit_correction: appends the units that a correction has subtracted to the audit log.
--   stream: nil: there is no audit log; before, after: token to the meter's numbers, see read_meter
--   correction: id, by, reason; prices: of units that are paid for, as a price line (cjson writes only 14 digits of a
--   number); period: as text; back: token to the units that a negative event takes back
local function audit_correction(stream, customer, now, period, correction, before, after, back)
  local taken = {}
  for token, was in pairs(stream and before or taken) do
    local is = after[token]
    taken[token] = string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f', was.included - is.included, was.granted - is.granted,
      was.credited - is.credited, was.overage - is.overage, was.over_cap - is.over_cap,
      was.pending - is.pending + (back[token] or 0), was.late - is.late)
  end
  if next(taken) then
    local what = {customer = customer, at = string.format('%.0f', now), period = period, id = correction.id,
      by = correction.by, reason = correction.reason, meters = taken, prices = correction.prices}
    redis.call('XADD', stream, '*', 'k', 'corrected', 'd', cjson.encode(what))
  end
end
