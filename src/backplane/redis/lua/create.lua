-- Creates a topic's history if there is none: a client that joins before the first message is told
-- a position from which it can recover.
--
-- KEYS 1 meta  2 stream  3 partition
-- ARGV 1 generation of the server  2 seconds the meta lives  3 milliseconds of the repair window
-- returns the fields of the meta; or a number: send again after so many milliseconds
local e = redis.call('HGET', KEYS[1], 'e')
if not e then
  local wait = repair_window_ms(KEYS[3], ARGV[1], ARGV[3])
  if wait then
    return tonumber(wait)
  end
  e = string.format('%.0f', epoch_now())
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'e', e, 's', 0, 'g', ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return redis.call('HMGET', KEYS[1], 'e', 's', 'l', 'a', 'g')
