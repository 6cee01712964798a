-- audit_correction: appends the units that a correction has subtracted to the audit log.
--   stream: nil: there is none; before, after: by its token each meter's numbers, as read_meter gives them
--   correction: id, by, reason, prices: of what is paid for, by token; period: as text; back: by its token the units that a negative event takes back
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
