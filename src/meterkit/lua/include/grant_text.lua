-- grant_text: the text that a grant is kept as; see grant_of.
local function grant_text(grant)
  return string.format('%s %.0f %.0f %.0f %.0f %.0f %.0f %.0f', grant.target, grant.quantity, grant.used, grant.priority,
    grant.effective, grant.expires, grant.created, grant.until_ms)
end
