-- Stores the offset that a user has acknowledged. It only rises, and only for messages of this
-- history: of its epoch, or of an earlier one up to the offset at which that ended.
--
-- KEYS 1 meta
-- ARGV 1 epoch  2 offset  3 seconds the meta lives
-- returns 1 stored, or stored before; 0 not of this history
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'l', 'a')
if not m[1] then
  return 0
end
local is_bad = wrong(m[1], m[2])
if is_bad then
  return is_bad
end
local offset, top = number(ARGV[2], 0), tonumber(m[2])
local acked = m[4] and number(m[4], 0)
if m[4] and (not acked or acked > top) then
  return unreadable('a')
end
if m[1] ~= ARGV[1] then
  local is_link = false
  for epoch, cut in string.gmatch(m[3] or '', '(%d+):(%d+)') do
    top = math.min(top, tonumber(cut))
    if epoch == ARGV[1] then
      is_link = true
      break
    end
  end
  if not is_link then
    return 0
  end
end
if not offset or offset > top then
  return 0
end
if not acked or offset > acked then
  redis.call('HSET', KEYS[1], 'a', ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
