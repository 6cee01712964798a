-- count_field: names the field of the customer's totals that counts an intent in a state, and its units, as text. Negative
-- intents are counted apart, in fields with capital letters.
--   state: queued, leased, delivered, parked, dead, dropped or pending
local function count_field(intent, state)
  local letters = {queued = 'q', leased = 'l', delivered = 'd', parked = 'k', dead = 'x', dropped = 'z', pending = 'p'}
  local letter, below_0 = letters[state], string.match(intent.value, '^%-(.*)$')
  return intent.period .. '|' .. intent.meter .. (below_0 and string.upper(letter) or letter), below_0 or intent.value
end
