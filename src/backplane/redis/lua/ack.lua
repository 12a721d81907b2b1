-- A user has dealt with messages that are kept for it. What is acknowledged only rises, and only for
-- messages of this history: of its epoch, or of one that came before and as far as that one went.
--
-- KEYS 1 meta
-- ARGV 1 epoch  2 offset  3 seconds the meta lives
-- answers 1 noted, or known already; 0 not of this history
local m = redis.call('HMGET', KEYS[1], 'e', 's', 'l', 'a')
local offset, top = tonumber(ARGV[2]), tonumber(m[2] or '0')
if not m[1] then
  return 0
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
if offset > top then
  return 0
end
if not m[4] or offset > tonumber(m[4]) then
  redis.call('HSET', KEYS[1], 'a', ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
