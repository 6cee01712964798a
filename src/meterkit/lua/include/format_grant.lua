-- format_grant: the text that a grant is kept as; see parse_grant.
local function format_grant(grant)
  return string.format('%s %.0f %.0f %.0f %.0f %.0f %.0f %.0f', grant.target, grant.quantity, grant.used, grant.priority,
    grant.effective, grant.expires, grant.created, grant.until_ms)
end
