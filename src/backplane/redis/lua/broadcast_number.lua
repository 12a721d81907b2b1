-- The number of the last message to everybody; 1: there was none, or another program wrote there.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function last_number(key)
  local text = redis.pcall('GET', key)
  local last = type(text) == 'string' and number(text, 1)
  return last and last < NUMBER_MAX and last or 1
end
