-- wall_ms: the caller's clock in milliseconds, its last argument. Takes the place of `wall` under a clock that is set.
local function wall_ms()
  return tonumber(ARGV[#ARGV])
end
