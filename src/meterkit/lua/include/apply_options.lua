-- apply_options: does what options of a settlement ask for once its usage is recorded.
--   words: of the reply; remember: writes that an event id or an idempotency key was used; or nil
--   backdated_period: the closed period that the usage belongs to, or nil; backdated_units: token of each meter to its units
--include count_backdated_units
local function apply_options(words, remember, totals_key, backdated_period, backdated_units)
  if remember then
    remember()
  end
  if backdated_period then
    local is_void = redis.call('HGET', totals_key, backdated_period .. '|v')
    words[#words + 1] = 'late ' .. backdated_period .. (is_void and ' free' or '')
    count_backdated_units(totals_key, backdated_period, backdated_units)
  end
end
