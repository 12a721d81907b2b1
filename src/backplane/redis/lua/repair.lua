-- Appends the last messages of a topic's history that a server of a new generation lacks, and their
-- idempotency keys. It may lack whole epochs, if masters changed twice; the node knows their
-- lineage. Idempotent: any node may send it, in any order, any number of times.
--
-- KEYS 1 meta  2 stream  3… idempotency keys
-- ARGV 1 epoch  2 first offset  3 generation of the server  4 channel  5 PUBLISH or SPUBLISH
--      6 seconds the stream lives  7 seconds the meta lives  8 seconds a key lives
--      9 "<epoch>:<offset> …" epochs before, newest first
--      10 the offset that a user has acknowledged, as far as the node knows; empty: unknown
--      11… for each message from the first offset on: the message, and which of KEYS is its own, or 0
-- returns {1, epoch, last offset} all of them are stored; {-1, …} too late, or another history;
--         {-2, …} the first offset is not low enough
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'g', 'a')
local e, first = m[1], tonumber(ARGV[2])
if not e then
  e = ARGV[1]
  local before = string.format('%.0f', first - 1)
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'e', e, 's', before, 'g', 'restored', 'l', ARGV[9])
  m = {e, before, 'restored'}
end
local is_bad = wrong(e, m[2])
if is_bad then
  return is_bad
end
if m[4] and not number(m[4], 0) then
  return unreadable('a')
end
local top = tonumber(m[2])
if m[3] == ARGV[3] then
  return {-1, e, string.format('%.0f', top)}
end
if e ~= ARGV[1] then
  -- The server's history must be an ancestor of the node's, up to the fork.
  local cut, is_before = math.huge, false
  for epoch, offset in string.gmatch(ARGV[9], '(%d+):(%d+)') do
    cut = math.min(cut, tonumber(offset))
    if epoch == e then
      is_before = true
      break
    end
  end
  if not is_before or top > cut then
    return {-1, e, string.format('%.0f', top)}
  end
end
if first > top + 1 then
  return {-2, e, string.format('%.0f', top)}
end
local is_renamed = e ~= ARGV[1]
e = ARGV[1]
for o = top + 1, first + (#ARGV - 10) / 2 - 1 do
  local at = 11 + 2 * (o - first)
  local message, key = ARGV[at], tonumber(ARGV[at + 1])
  local offset = string.format('%.0f', o)
  -- The stream takes all of them, or not even the first.
  redis.call('XADD', KEYS[2], offset .. '-0', 'd', message)
  redis.call(ARGV[5], ARGV[4], e .. ':' .. offset .. ':' .. message)
  if key > 0 then
    redis.call('SET', KEYS[key], e .. ':' .. offset, 'EX', ARGV[8])
  end
  top = o
end
redis.call('HSET', KEYS[1], 's', string.format('%.0f', top))
if is_renamed then
  redis.call('HSET', KEYS[1], 'e', e, 'l', ARGV[9])
end
local acked = tonumber(ARGV[10])
if acked and acked > tonumber(m[4] or '-1') then
  redis.call('HSET', KEYS[1], 'a', ARGV[10])
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[7])
return {1, e, string.format('%.0f', top)}
