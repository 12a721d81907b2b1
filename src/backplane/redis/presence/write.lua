-- Writes entries of a room's users on one node. Four of ARGV for each: the name, the entry (empty:
-- the user has left), whether the event is published (0: no, 1: if something changes, 2: in any
-- case), and the event. Returns the other nodes with users in the room, and then `!<number>` for
-- each user who had no entry and has left or is only updated: their entry may have vanished.
local missing = {}
for i = first, #ARGV, 4 do
  local user, value, notify, event = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local may_publish = false
  if value == '' then
    may_publish = notify ~= '0' and has_events()
    local was_there = redis.call('HDEL', own, user) == 1
    may_publish = may_publish and (was_there or notify == '2')
    if notify == '1' and not was_there then
      missing[#missing + 1] = '!' .. (i - first) / 4
    end
  else
    local is_new = redis.call('HSET', own, user, value) == 1
    may_publish = (is_new or notify == '2') and notify ~= '0' and has_events()
    if notify == '0' and is_new then
      missing[#missing + 1] = '!' .. (i - first) / 4
    end
  end
  if may_publish and not is_elsewhere(user) then
    redis.call(publish, channel, event)
  end
end
if redis.call('EXISTS', own) == 1 then
  redis.call('SADD', nodes, node)
  redis.call('SADD', index, topic)
else
  redis.call('SREM', nodes, node)
  redis.call('SREM', index, topic)
end
for _, user in ipairs(missing) do
  names[#names + 1] = user
end
return names
