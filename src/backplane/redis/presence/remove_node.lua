-- Removes the entries of a dead node in a room, and publishes the leaves of users who are on no
-- other node. The first of the rest of ARGV is the beginning of a leave event.
if has_events() then
  for _, user in ipairs(redis.call('HKEYS', own)) do
    -- A longer name is no user's.
    if #user < 256 and not is_elsewhere(user) then
      redis.call(publish, channel, ARGV[first] .. string.char(#user) .. user)
    end
  end
end
redis.call('DEL', own)
redis.call('SREM', nodes, node)
redis.call('SREM', index, topic)
