-- The node has died: its users have left the room, unless they are there on another one. The first of
-- the rest of ARGV is how such news begin.
if is_told() then
  for _, user in ipairs(redis.call('HKEYS', own)) do
    -- A longer one is no user's.
    if #user < 256 and not is_elsewhere(user) then
      redis.call(publish, channel, ARGV[first] .. string.char(#user) .. user)
    end
  end
end
redis.call('DEL', own)
redis.call('SREM', nodes, node)
redis.call('SREM', index, topic)
