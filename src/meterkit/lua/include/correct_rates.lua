-- correct_rates: counts into rates what they have not seen yet, see correct_rate.
--   terms, at: numbers of the first rate; rates: how many; windows: how many of them, the last, count what is spent, or
--   nil; fields[place]: what is kept of the first; its field is words[names + place]; write, w: where fields are put
-- Returns w behind them, and how long what they have counted matters, with a quarter of an hour (ms).
--include correct_rate
local function correct_rates(terms, at, rates, windows, spent, fields, words, names, place, write, w, now)
  local lasts_ms = QUARTER_HOUR_MS
  for nth = 1, rates do
    local kind, window, refill, quantity, counted_ms = struct.unpack('<ddddd', terms, at + 40 * (nth - 1))
    quantity = windows and nth > rates - windows and spent or quantity
    local name = words[names + place + nth - 1]
    local packed, matters_ms =
      correct_rate(fields[place + nth - 1], name, kind, window, refill, quantity, counted_ms, now)
    lasts_ms = math.max(lasts_ms, QUARTER_HOUR_MS + matters_ms)
    write[w + 1], write[w + 2], w = name, packed, w + 2
  end
  return w, lasts_ms
end
