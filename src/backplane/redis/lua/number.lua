-- Checked numbers, for scripts that read what other programs may have written. A Lua number is
-- exact up to 2^53 - 1: Position::NUMBER_MAX in src/ids.rs is the same.
--
-- A script checks everything that it counts from before it writes, and answers `-UNREADABLE <what>`
-- if that is not as written here: then nothing was done. That an offset is beyond the last one of
-- its stream is checked by Redis, before anything of the message is written elsewhere.
local NUMBER_MAX = 9007199254740991

-- The number in a field; nil: none, or less than `least`, or not in canonical digits.
local function number(text, least)
  local value = tonumber(text or '')
  if value and value >= least and value <= NUMBER_MAX and string.format('%.0f', value) == text then
    return value
  end
end

local function unreadable(what)
  return redis.error_reply('UNREADABLE ' .. what .. ' is not as it was written')
end

-- The error of an epoch and a last offset; nil: both are as written here.
local function wrong(e, s)
  if not number(e, 1) then
    return unreadable('e')
  end
  if not number(s, 0) then
    return unreadable('s')
  end
end
