-- count_field: where in its customer's totals an intent in a state is counted, and how much, as text. What takes back units
-- that Stripe has, with a value below 0, is counted apart, in capital letters.
--   state: queued, leased, delivered, parked, dead, dropped or pending
local function count_field(intent, state)
  local letters = {queued = 'q', leased = 'l', delivered = 'd', parked = 'k', dead = 'x', dropped = 'z', pending = 'p'}
  local letter, below_0 = letters[state], string.match(intent.value, '^%-(.*)$')
  return intent.period .. '|' .. intent.meter .. (below_0 and string.upper(letter) or letter), below_0 or intent.value
end
