-- parse_grant: parses a grant from its name and its text "target quantity used priority effective expires created until".
local function parse_grant(name, text)
  local target, quantity, used, priority, effective, expires, created, until_ms = string.match(text,
    '^(%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {
    name = name, target = target, quantity = quantity + 0, used = used + 0, priority = priority + 0,
    effective = effective + 0, expires = expires + 0, created = created + 0, until_ms = until_ms + 0, raised = 0,
  }
end
