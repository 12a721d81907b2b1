-- Verifies after a failover that a message is stored that the last server acknowledged. If it is
-- the next one, it is appended with its idempotency key; if it is the first of its epoch, the epoch
-- begins again with it. Idempotent.
--
-- KEYS 1 meta  2 stream  3 the idempotency key, if the message has one
-- ARGV 1 epoch  2 offset  3 generation of the server  4 channel  5 PUBLISH or SPUBLISH
--      6 seconds the stream lives  7 seconds the meta lives  8 seconds a key lives, 0: there is none
--      9 message  10 the epoch before, if the message is the first of its epoch; 0: it is not
-- returns 1 stored; 0 send again: messages before it are missing, which other nodes may append;
--         -1 the history has gone on without it
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'l', 'g')
local offset = tonumber(ARGV[2])
if not m[1] then
  return 0
end
local is_bad = wrong(m[1], m[2])
if is_bad then
  return is_bad
end
local is_fork = false
if m[1] ~= ARGV[1] then
  for epoch, cut in string.gmatch(m[3] or '', '(%d+):(%d+)') do
    if epoch == ARGV[1] and offset <= tonumber(cut) then
      return 1
    end
  end
  -- Another node may know the epoch in between, and append that first.
  local may_come = m[4] ~= ARGV[3] and tonumber(m[1]) < tonumber(ARGV[1])
  is_fork = may_come and m[1] == ARGV[10] and offset == tonumber(m[2]) + 1
  if not is_fork then
    return may_come and 0 or -1
  end
end
local top = tonumber(m[2])
if offset <= top then
  return 1
end
if m[4] == ARGV[3] then
  return -1
end
if offset > top + 1 then
  return 0
end
redis.call('XADD', KEYS[2], ARGV[2] .. '-0', 'd', ARGV[9])
if is_fork then
  local links = m[1] .. ':' .. m[2] .. ' ' .. (m[3] or '')
  redis.call('HSET', KEYS[1], 'e', ARGV[1], 's', ARGV[2], 'l', links)
else
  redis.call('HSET', KEYS[1], 's', ARGV[2])
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call(ARGV[5], ARGV[4], ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[9])
if ARGV[8] ~= '0' then
  redis.call('SET', KEYS[3], ARGV[1] .. ':' .. ARGV[2], 'EX', ARGV[8])
end
return 1
