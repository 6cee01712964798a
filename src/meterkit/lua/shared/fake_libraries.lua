-- The two libraries of a server that fakeredis lacks, as far as the scripts use them. Not a script: it stands before
-- each of them where the store is within the process.
local struct, cmsgpack = {}, {}
function struct.unpack(format, text, at) -- doubles only: '<' and a 'd' each
  local values, place = {}, at or 1
  for i = 1, #format - 1 do
    local b1, b2, b3, b4, b5, b6, b7, b8 = string.byte(text, place, place + 7)
    local fraction = ((((((b7 % 16) * 256 + b6) * 256 + b5) * 256 + b4) * 256 + b3) * 256 + b2) * 256 + b1
    local exponent = (b8 % 128) * 16 + math.floor(b7 / 16)
    local value = exponent == 0 and 0 or math.ldexp(1 + fraction / 2 ^ 52, exponent - 1023)
    values[i], place = b8 > 127 and -value or value, place + 8
  end
  values[#format] = place
  return unpack(values)
end
function struct.pack(_, ...) -- whole numbers: '<' and an 'i8' each
  local bytes = {}
  for _, value in ipairs({...}) do
    for _ = 1, 8 do
      bytes[#bytes + 1], value = string.char(value % 256), math.floor(value / 256)
    end
  end
  return table.concat(bytes)
end
function cmsgpack.pack(...) -- texts of up to 65,535 bytes, whole numbers from -32
  local parts = {}
  for i, value in ipairs({...}) do
    if type(value) == 'string' then
      local size = #value
      parts[i] = (size < 32 and string.char(160 + size) or size < 2 ^ 8 and string.char(217, size)
        or string.char(218, math.floor(size / 256), size % 256)) .. value
    elseif value < 128 then
      parts[i] = string.char(value % 256)
    else
      local log = value < 2 ^ 8 and 0 or value < 2 ^ 16 and 1 or value < 2 ^ 32 and 2 or 3
      local bytes = {}
      for place = 2 ^ log, 1, -1 do
        bytes[place], value = string.char(value % 256), math.floor(value / 256)
      end
      parts[i] = string.char(204 + log) .. table.concat(bytes)
    end
  end
  return table.concat(parts)
end
function cmsgpack.unpack(text)
  local values, at = {}, 1
  while at <= #text do
    local kind, size, value = string.byte(text, at), 0, nil
    if kind < 128 or kind >= 224 then
      value = kind < 128 and kind or kind - 256
    elseif kind >= 160 and kind < 192 then
      size = kind - 160
    elseif kind == 217 then
      size, at = string.byte(text, at + 1), at + 1
    elseif kind == 218 then
      size, at = string.byte(text, at + 1) * 256 + string.byte(text, at + 2), at + 2
    elseif kind >= 204 and kind < 208 then
      size, value = 2 ^ (kind - 204), 0
    else
      error('Bad data format in input.')
    end
    if at + size > #text then
      error('Missing bytes in input.')
    end
    for place = at + 1, at + (value and size or 0) do
      value = value * 256 + string.byte(text, place)
    end
    values[#values + 1] = value or string.sub(text, at + 1, at + size)
    at = at + size + 1
  end
  return unpack(values)
end
