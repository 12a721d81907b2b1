-- Appends a message to a topic's history and publishes it, atomically.
--
-- KEYS 1 meta (hash)  2 stream  3 partition  4 the idempotency key, if the message has one
-- ARGV 1 channel  2 message  3 messages kept  4 seconds the stream lives  5 seconds the meta lives
--      6 generation of the server  7 PUBLISH or SPUBLISH  8 seconds a key lives, 0: there is none
--      9 milliseconds of the repair window
--      10 what the publisher may not leave behind: 1 a new history, 2 a new key, 3 both, 0 neither
-- returns {1, epoch, offset} stored; {1, epoch, offset, parent} stored as the first of its epoch,
--         which follows that one; {2, epoch, offset} stored before under this key;
--         {0, epoch, milliseconds} send again after so long: the repair window of a new generation;
--         {3, epoch, 0} send again when the server's generation is known;
--         {4, 0, 0} refused: it would begin a history; {5, 0, 0} refused: its key is new
--
-- meta: e epoch, s last offset, g generation of the server that stored the last message,
--       l "<epoch>:<offset> …" earlier epochs and their last offsets, newest first,
--       a the offset that a user has acknowledged
if ARGV[8] ~= '0' then
  local known = redis.call('GET', KEYS[4])
  if known then
    local e, o = string.match(known, '^(%d+):(%d+)$')
    if wrong(e, o) then
      return unreadable('the value of an idempotency key')
    end
    -- A write, so that WAIT waits for a replica that has the message.
    redis.call('EXPIRE', KEYS[4], ARGV[8])
    return {2, e, o}
  end
  if ARGV[10] >= '2' then
    return {5, '0', '0'}
  end
end
local m = redis.call('HMGET', KEYS[1], 'e', 'g', 's')
local e = m[1]
local is_bad = e and wrong(e, m[3])
if is_bad then
  return is_bad
end
local top = e and tonumber(m[3]) or 0
if top >= NUMBER_MAX then
  return unreadable('s is the last there is, and s')
end
if top == 0 and (ARGV[10] == '1' or ARGV[10] == '3') then
  return {4, '0', '0'}
end
local is_new, links, parent = not e, nil, nil
if m[2] ~= ARGV[6] or not e then
  local wait = repair_window_ms(KEYS[3], ARGV[6], ARGV[9])
  if wait == WRONG_GENERATION then
    return {3, e or '0', '0'}
  elseif wait then
    return {0, e or '0', wait}
  end
  if e then
    parent = e
    links = e .. ':' .. m[3] .. ' ' .. (redis.call('HGET', KEYS[1], 'l') or '')
    local n, kept = 0, ''
    for link in string.gmatch(links, '%S+') do
      n = n + 1
      if n <= 16 then kept = kept .. link .. ' ' end
    end
    links = kept
    local next_epoch = math.max(epoch_now(), tonumber(e) + 1)
    if next_epoch > NUMBER_MAX then
      return unreadable('e is the last there is, and e')
    end
    e = string.format('%.0f', next_epoch)
  else
    e = string.format('%.0f', epoch_now())
    redis.call('DEL', KEYS[1], KEYS[2])
  end
end
local o = string.format('%.0f', top + 1)
-- Exact trimming costs more the longer a stream is, and matters less.
local how = tonumber(ARGV[3]) < 1000 and '=' or '~'
redis.call('XADD', KEYS[2], 'MAXLEN', how, ARGV[3], o .. '-0', 'd', ARGV[2])
if links then
  redis.call('HSET', KEYS[1], 'e', e, 's', o, 'g', ARGV[6], 'l', links)
elseif is_new then
  redis.call('HSET', KEYS[1], 'e', e, 's', o, 'g', ARGV[6])
else
  redis.call('HSET', KEYS[1], 's', o)
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call(ARGV[7], ARGV[1], e .. ':' .. o .. ':' .. ARGV[2])
if ARGV[8] ~= '0' then
  redis.call('SET', KEYS[4], e .. ':' .. o, 'EX', ARGV[8])
end
if parent then
  return {1, e, o, parent}
end
return {1, e, o}
