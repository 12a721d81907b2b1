-- Reads the number of the last message to everybody. A server that was a replica may lack the last
-- ones: a node that knows a higher number puts that back. A node that knows of a message which the
-- others cannot know takes a number without a message, which everybody else will miss.
--
-- KEYS 1 the number of the last message to everybody
-- ARGV 1 the last number that the node knows, 1 if none  2 whether it takes a number (1) or not (0)
-- returns the number
local last, known = last_number(KEYS[1]), tonumber(ARGV[1])
local now = math.max(last, known)
if ARGV[2] == '1' then
  now = math.max(now + 1, now_ms())
end
if now > last then
  redis.call('SET', KEYS[1], string.format('%.0f', now))
end
return string.format('%.0f', now)
