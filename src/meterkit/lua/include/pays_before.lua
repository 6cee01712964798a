-- pays_before: whether a grant pays before another: by priority, expiry, creation, name.
local function pays_before(a, b)
  if a.priority ~= b.priority then
    return a.priority < b.priority
  elseif a.expires ~= b.expires then
    return a.expires < b.expires
  elseif a.created ~= b.created then
    return a.created < b.created
  end
  return a.name < b.name
end
