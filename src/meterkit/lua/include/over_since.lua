-- over_since: since when a level is above what is included (ms); 0 where it is not.
--   included: -1: unlimited; over_ms: what was known of it before
local function over_since(level, included, over_ms, now)
  if included < 0 or level <= included then
    return 0
  end
  return over_ms > 0 and over_ms or now
end
