-- Verifies after a failover that a message is stored that the last server acknowledged. If it is
-- the next one, it is appended with its idempotency key; if it is the first of its epoch, the epoch
-- begins again with it. Idempotent.
--
-- The server may have died after it had answered one publisher, and before it had sent anything of
-- the messages before that one to anybody. Nobody can append those. So at the end of the repair
-- window the message is stored in its place all the same, and empty entries stand for what is
-- missing before it, which everybody announces as lost: as soon as all nodes have put back what follows
-- what is there already, and one message after the other.
--
-- KEYS 1 meta  2 stream  3 partition  4 the idempotency key, if the message has one
-- ARGV 1 epoch  2 offset  3 generation of the server  4 channel  5 PUBLISH or SPUBLISH
--      6 seconds the stream lives  7 seconds the meta lives  8 seconds a key lives, 0: there is none
--      9 message  10 the epoch before, if the message is the first of its epoch; 0: it is not
--      11 milliseconds of the repair window
-- returns 1 stored; 0 send again: messages before it are missing, which other nodes may append;
--         -1 the history has gone on without it
--
-- meta, beside what publish.lua has: c "<generation> <offset> …" offsets of messages that nodes have
-- and that could not be appended yet. They are appended in order, whichever node has them.

-- The same as LAST_MS where no node has restored the history yet, which is worth more. Nodes ask every
-- 30 ms, and one that the host holds up asks later.
local LAST_EMPTY_MS = 200
-- What each of those messages gives to the next one.
local NEXT_MS = 300
-- Empty entries, at most: beyond, the gap stays.
local FILLED_MAX = 1000
-- Offsets in c, at most.
local NOTED_MAX = 64

local epoch, offset, generation = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'l', 'g', 'c')
local e, top, links = m[1], 0, nil
local is_next = false
if e then
  local is_bad = wrong(e, m[2])
  if is_bad then
    return is_bad
  end
  top = tonumber(m[2])
  local cut_min = e == epoch and top or 0
  if e ~= epoch then
    local lowest = math.huge
    for link, cut in string.gmatch(m[3] or '', '(%d+):(%d+)') do
      lowest = math.min(lowest, tonumber(cut))
      if link == epoch then
        cut_min = lowest
        break
      end
    end
  end
  if offset <= cut_min then
    return 1
  end
  if m[4] == generation or tonumber(e) > tonumber(epoch) then
    return -1
  end
  if e ~= epoch then
    -- Another node may know the epoch in between, and append that first.
    if offset <= top then
      return 0
    end
    links = e .. ':' .. m[2] .. ' ' .. (m[3] or '')
  end
  is_next = offset == top + 1 and (e == epoch or e == ARGV[10])
end

-- What of c is of this generation and not stored yet.
local noted, count = '', 0
local is_noted, is_lowest = false, true
local of, offsets = string.match(m[5] or '', '^(%S+)(.*)$')
for text in string.gmatch(of == generation and offsets or '', '%d+') do
  local other = tonumber(text)
  is_noted = is_noted or other == offset
  is_lowest = is_lowest and (other <= top or other >= offset)
  if other > top and other ~= offset then
    noted, count = noted .. ' ' .. text, count + 1
  end
end

if not is_next then
  if not is_noted and count < NOTED_MAX then
    redis.call('HSET', KEYS[1], 'c', generation .. noted .. ' ' .. ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[7])
  end
  local wait, left, have_followed = repair_window_ms(KEYS[3], generation, ARGV[11])
  if wait == WRONG_GENERATION then
    return 0
  end
  left = wait and left or 0
  local is_time = have_followed or left <= (e and LAST_MS or LAST_EMPTY_MS)
  if left > 0 and not (is_time and is_lowest) then
    return 0
  end
end

if not e then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'e', epoch, 'g', 'restored')
  if ARGV[10] ~= '0' then
    redis.call('HSET', KEYS[1], 'l', ARGV[10] .. ':' .. string.format('%.0f', offset - 1) .. ' ')
  end
elseif offset - top - 1 <= FILLED_MAX then
  for missing = top + 1, offset - 1 do
    redis.call('XADD', KEYS[2], string.format('%.0f', missing) .. '-0', 'd', '')
  end
end
redis.call('XADD', KEYS[2], ARGV[2] .. '-0', 'd', ARGV[9])
redis.call('HSET', KEYS[1], 's', ARGV[2])
if links then
  redis.call('HSET', KEYS[1], 'e', epoch, 'l', links)
end
if noted == '' then
  redis.call('HDEL', KEYS[1], 'c')
else
  redis.call('HSET', KEYS[1], 'c', generation .. noted)
  -- Nothing new is stored before the node that has the next one has asked again.
  local p, next_ms = redis.call('HMGET', KEYS[3], 'w', 'n'), now_ms() + NEXT_MS
  local window = window_of(p[1], p[2])
  if window and window.of == generation and window.till < next_ms then
    window.till, window.floor, window.nodes = next_ms, window.floor or 0, window.nodes or ''
    write_window(KEYS[3], window)
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call(ARGV[5], ARGV[4], epoch .. ':' .. ARGV[2] .. ':' .. ARGV[9])
if ARGV[8] ~= '0' then
  redis.call('SET', KEYS[4], epoch .. ':' .. ARGV[2], 'EX', ARGV[8])
end
return 1
