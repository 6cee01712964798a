-- For wrk: as many customers in turn as its argument says, and one line of figures at the end.
local requests, n, customers = {}, 0, 0

function init(args)
  customers = tonumber(args[1])
  for i = 0, customers - 1 do
    wrk.headers["x-customer-id"] = string.format("cus_%05d", i)
    requests[i] = wrk.format("GET", "/v1/x")
  end
end

function request()
  n = (n + 7) % customers
  return requests[n]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format("FIGURES %d %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
