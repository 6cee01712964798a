-- store_rebuilt_counts: stores the counters that a rebuild has raised, and where their reported units are.
--   period: its first instant, as text; wanted: see `meters` of rebuild_counters; meters: see read_counters
--   settled: by token of a raised meter, the units that no further meter event bills, by letter
local function store_rebuilt_counts(counters_key, totals_key, period, wanted, meters, settled)
  for token, by_letter in pairs(settled) do
    redis.call('HSET', counters_key, token .. 'm', pack_meter(meters[token]))
    if wanted[token].prices ~= '' then
      redis.call('HSETNX', totals_key, period .. '|' .. token .. 's', wanted[token].prices)
    end
    for letter, quantity in pairs(by_letter) do
      if quantity > 0 then
        redis.call('HINCRBY', totals_key, period .. '|' .. token .. letter, string.format('%.0f', quantity))
      end
    end
  end
end
