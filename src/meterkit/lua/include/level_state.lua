-- level_state: since when a level is above what is included (ms; 0: it is not), and what was included when it last was not.
--   included: -1: unlimited; over_ms, fitted: what was known of both before
local function level_state(level, included, over_ms, fitted, now)
  if included < 0 or level <= included then
    return 0, included
  end
  return over_ms > 0 and over_ms or now, fitted
end
