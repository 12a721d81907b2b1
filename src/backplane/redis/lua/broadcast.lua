-- Publishes a message to everybody and numbers it, atomically. The message carries the number of the
-- one before it and its own: a node that receives them without a gap has missed none. Numbers are times
-- in milliseconds where those rise, so that a promoted replica that lacks the last ones gives none of
-- them to another message.
--
-- KEYS 1 the number of the last message to everybody
-- ARGV 1 channel  2 message  3 PUBLISH or SPUBLISH
local last = last_number(KEYS[1])
local this = string.format('%.0f', math.max(last + 1, now_ms()))
redis.call('SET', KEYS[1], this)
redis.call(ARGV[3], ARGV[1], string.format('%.0f', last) .. ':' .. this .. ':' .. ARGV[2])
return this
