-- Begins a topic's history, unless it has one: whoever joins before the first message is told a
-- position from which they can come back.
--
-- KEYS 1 meta  2 stream
-- ARGV 1 generation of the server  2 seconds the meta lives
local e = redis.call('HGET', KEYS[1], 'e')
if not e then
  local t = redis.call('TIME')
  e = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'e', e, 's', 0, 'g', ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return redis.call('HMGET', KEYS[1], 'e', 's', 'l', 'a')
