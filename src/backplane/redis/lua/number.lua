-- What the scripts of histories know of numbers and of what other programs may have written. A Lua number
-- counts one by one up to 2^53 - 1 and no further: Position::NUMBER_MAX in src/ids.rs is the same.
--
-- A script checks all that it counts from before it writes anything, and answers `-UNREADABLE <what>` if
-- that is not as we write it: then nothing was done. That a stream takes no message behind its last one
-- Redis checks itself, before anything of the message is written elsewhere.
local NUMBER_MAX = 9007199254740991

-- The number that a field holds; nil: none, or less than `least`, or not in the digits that we write.
local function number(text, least)
  local value = tonumber(text or '')
  if value and value >= least and value <= NUMBER_MAX and string.format('%.0f', value) == text then
    return value
  end
end

local function unreadable(what)
  return redis.error_reply('UNREADABLE ' .. what .. ' is not as it was written')
end

-- What is wrong with an epoch and the last offset; nil: nothing.
local function wrong(e, s)
  if not number(e, 1) then
    return unreadable('e')
  end
  if not number(s, 0) then
    return unreadable('s')
  end
end
