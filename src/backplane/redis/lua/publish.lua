-- Gives a message its place in a topic's history and tells everybody, in one step.
--
-- KEYS 1 meta (hash)  2 stream  3 the key of a retry, where there is one
-- ARGV 1 channel  2 message  3 messages kept  4 seconds the stream lives  5 seconds the meta lives
--      6 generation of the server  7 PUBLISH or SPUBLISH  8 seconds a key lives, 0: there is none
--      9 milliseconds a new server waits for what others can repair
-- answers {1, epoch, offset} said; {2, epoch, offset} it had been said under this key;
--         {0, epoch, milliseconds} come again: the server is another one than last time
--
-- meta: e epoch, s last offset, a what the user has acknowledged (lua/ack.lua), g generation, w "<generation> <end>" of the pause in which a new server
-- is repaired, l "<epoch>:<offset> …" which epochs came before and how far they went, newest first.
if ARGV[8] ~= '0' then
  local said = redis.call('GET', KEYS[3])
  if said then
    local e, o = string.match(said, '^(%d+):(%d+)$')
    -- A write, so that whoever waits for a replica waits for one that knows of it.
    redis.call('EXPIRE', KEYS[3], ARGV[8])
    return {2, e, o}
  end
end
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local m = redis.call('HMGET', KEYS[1], 'e', 'g')
local e = m[1]
if not e then
  e = string.format('%.0f', now_ms())
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'e', e, 's', 0, 'g', ARGV[6])
elseif m[2] ~= ARGV[6] then
  local now = now_ms()
  local pause = redis.call('HGET', KEYS[1], 'w') or ''
  local of, till = string.match(pause, '^(%S+) (%d+)$')
  if of ~= ARGV[6] then
    redis.call('HSET', KEYS[1], 'w', ARGV[6] .. ' ' .. string.format('%.0f', now + ARGV[9]))
    return {0, e, ARGV[9]}
  end
  if now < tonumber(till) then
    return {0, e, string.format('%.0f', till - now)}
  end
  local top = redis.call('HGET', KEYS[1], 's') or '0'
  local links = e .. ':' .. top .. ' ' .. (redis.call('HGET', KEYS[1], 'l') or '')
  local n, kept = 0, ''
  for link in string.gmatch(links, '%S+') do
    n = n + 1
    if n <= 4 then kept = kept .. link .. ' ' end
  end
  e = string.format('%.0f', math.max(now, tonumber(e) + 1))
  redis.call('HSET', KEYS[1], 'e', e, 'g', ARGV[6], 'l', kept)
  redis.call('HDEL', KEYS[1], 'w')
end
local o = string.format('%.0f', redis.call('HINCRBY', KEYS[1], 's', 1))
-- Trimming to the entry is dearer the longer a stream is, and matters the less.
local how = tonumber(ARGV[3]) < 1000 and '=' or '~'
redis.call('XADD', KEYS[2], 'MAXLEN', how, ARGV[3], o .. '-0', 'd', ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call(ARGV[7], ARGV[1], e .. ':' .. o .. ':' .. ARGV[2])
if ARGV[8] ~= '0' then
  redis.call('SET', KEYS[3], e .. ':' .. o, 'EX', ARGV[8])
end
return {1, e, o}
