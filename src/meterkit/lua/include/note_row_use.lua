-- note_row_use: notes which price by model a meter used last. Call it for each recorded meter in order: its rows follow it.
--   counters_key: hash; name: of the meter's field; event: see settle; units: of overage that were recorded
-- The field METERy of the counters has the tokens of the meter's rows, the one used last first.
local row_source
local function note_row_use(counters_key, name, event, units)
  if event ~= PRICE_ROW then
    row_source = name
  elseif units > 0 then
    local field, token = string.sub(row_source, 1, 4) .. 'y', string.sub(name, 1, 4)
    local order = redis.call('HGET', counters_key, field) or ''
    if string.sub(order, 1, 4) ~= token then
      local others = string.gsub(order, '....', {[token] = ''})
      redis.call('HSET', counters_key, field, token .. others)
    end
  end
end
