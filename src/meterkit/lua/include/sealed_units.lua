-- sealed_units: counts the sealed units of meters in a period, by price segment.
--   totals: as read; period: its first instant, as text
--   billed: nil: the period has one segment; units: token to the invoice lines of ended segments and of earlier periods,
--   {an instant within the line (ms), units} each; items: token to the units of this period that invoice items bill
-- Returns three functions, and by token the units on lines of this period:
--   sealed_in(token, letters): units in these states, without corrected ones
--   to_compensate(sealed, tokens, behind): sealed overage that Stripe has or will get, by events or invoice items; behind:
--   units that come first, because they are included or were compensated before
--   in_open(tokens, behind, repaid): such overage of the open segment; repaid: units that were compensated before
local function sealed_units(totals, period, billed)
  local ended = {}
  for token, lines in pairs(billed and billed.units or {}) do
    for _, line in ipairs(lines) do
      if line[1] >= tonumber(period) then
        ended[token] = (ended[token] or 0) + line[2]
      end
    end
  end
  local function sealed_in(token, letters)
    local sum, field = 0, period .. '|' .. token
    for letter in string.gmatch(letters, '.') do
      sum = sum + (totals[field .. letter] or 0) - (totals[field .. string.upper(letter)] or 0)
    end
    return sum
  end
  local function to_compensate(sealed, tokens, behind)
    local sent = -behind
    for _, token in ipairs(tokens) do
      sent = sent + sealed_in(token, 'qlkd') + (billed and billed.items[token] or 0)
    end
    return math.max(0, math.min(sealed, sent))
  end
  local function in_open(tokens, behind, repaid)
    local open, before, by_hand = 0, 0, 0
    for _, token in ipairs(tokens) do
      local gone = ended[token] or 0
      open, before = open + math.max(0, sealed_in(token, 'qlkd') - gone), before + gone
      for count in string.gmatch(totals[period .. '|' .. token .. 'H'] or '', ' (%d+);') do
        by_hand = by_hand + count
      end
    end
    return open - math.max(0, behind - before) - math.max(0, repaid - by_hand)
  end
  return sealed_in, to_compensate, in_open, ended
end
