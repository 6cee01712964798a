-- grant_balance: what a customer's grants come to, and the plan's that are due: kept in the field "balance" of their hash
-- until it changes, so that the grants need not be read.
--   prepaid: {mark: names the plan's grants, recurring, limits, ...}; start_ms, end_ms: of the period
--   once, rolls, where there are such grants: see add_once, roll_over
--   earlier, where an earlier period's grants may still live: {start, finish, recurring, limits, 1: the customer was on
--   the plan then; 0: only if it had a grant by then} each
--   The field is a line of: since when and until when it holds (ms), start, mark, 1 where something is due to be
--   written down, else 0, BALANCE_FORM; then a line a target: its name, left, was_there, last, head (see sum_grants).
-- Returns {sums, since (text), changes_at, due, debts: those that were read, file: all the grants, where they had to be
-- read}.
--include read_grants
--include add_recurring_grants
--include plan_repayment
--include sum_grants
local function grant_balance(key, prepaid, start_ms, end_ms, now, is_forced)
  local text = not is_forced and redis.call('HGET', key, 'balance')
  if text then
    local since, changes_at, began_ms, mark, due, form = string.match(text, '^(%d+) (%d+) (%d+) (%S+) (%d) ?(%d*)')
    if form == BALANCE_FORM and mark == prepaid.mark and began_ms + 0 == start_ms and since + 0 <= now and now < changes_at + 0 then
      local sums = {}
      for target, left, was_there, last, head in string.gmatch(text, '\n(%S+) (-?%d+) (%d) (%d+) ([^\n]*)') do
        sums[target] = {left = left + 0, was_there = was_there + 0, last = last + 0, head = head}
      end
      return {sums = sums, since = since, changes_at = changes_at, due = due == '1', debts = {}}
    end
  end
  local file = read_grants(key, now)
  if prepaid.rolls then
--include keep_ended
    keep_ended(file, prepaid.rolls)
  end
  local current = {}
  for _, plan in ipairs(prepaid.earlier and prepaid.recurring or {}) do
    current[plan[1]] = true
  end
  for _, period in ipairs(prepaid.earlier or {}) do
    local began_ms, ended, recurring, limits, is_certain = unpack(period)
    if is_certain == 1 or file.first < ended then
      add_recurring_grants(file, recurring, began_ms, ended, now, limits, prepaid.history, true, current)
    end
  end
  add_recurring_grants(file, prepaid.recurring, start_ms, end_ms, now, prepaid.limits, prepaid.history)
  if prepaid.once then
--include add_once
    add_once(file, prepaid.once, start_ms, end_ms, now)
  end
  if prepaid.rolls then
--include roll_over
    roll_over(file, prepaid.rolls)
  end
  plan_repayment(file, now)
  local sums, changes_at = sum_grants(file, start_ms, now)
  return {
    sums = sums, since = string.format('%.0f', now), changes_at = changes_at, due = file.due, debts = file.debts,
    file = file,
  }
end
