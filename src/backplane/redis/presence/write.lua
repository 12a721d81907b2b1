-- Users of a room as their node has them. Four of ARGV each: the name, the value (none: they have
-- left), whether that is told (0: no, 1: if it changes anything, 2: in any case), and the news.
-- Answers the other nodes that have users there.
for i = first, #ARGV, 4 do
  local user, value, tell, news = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local may_tell = false
  if value == '' then
    may_tell = tell ~= '0' and is_told()
    local was_there = redis.call('HDEL', own, user) == 1
    may_tell = may_tell and (was_there or tell == '2')
  else
    local is_new = redis.call('HSET', own, user, value) == 1
    may_tell = (is_new or tell == '2') and tell ~= '0' and is_told()
  end
  if may_tell and not is_elsewhere(user) then
    redis.call(publish, channel, news)
  end
end
if redis.call('EXISTS', own) == 1 then
  redis.call('SADD', nodes, node)
  redis.call('SADD', index, topic)
else
  redis.call('SREM', nodes, node)
  redis.call('SREM', index, topic)
end
return names
