-- store_rebuilt_counts: stores the counters that a rebuild has raised, and where their reported units are.
--   period: its first instant, as text; wanted: see `meters` of rebuild_counters; meters: see read_counters
--   changed: by token of a raised meter, the units that no meter event bills, by letter; done: see the reply there
local function store_rebuilt_counts(counters_key, totals_key, period, wanted, meters, changed, done)
  for token, settled in pairs(changed) do
    settled.d = tonumber(string.match(done[token], ' (%d+) %d+ %d+$'))
    redis.call('HSET', counters_key, token .. 'm', pack_meter(meters[token]))
    if wanted[token].prices ~= '' then
      redis.call('HSETNX', totals_key, period .. '|' .. token .. 's', wanted[token].prices)
    end
    for letter, quantity in pairs(settled) do
      if quantity > 0 then
        redis.call('HINCRBY', totals_key, period .. '|' .. token .. letter, string.format('%.0f', quantity))
      end
    end
  end
end
