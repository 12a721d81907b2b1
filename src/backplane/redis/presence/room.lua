-- The common part of both scripts. KEYS: the users of a room on one node, the room's nodes, and the
-- topics of the node in this partition. ARGV: that node, the room's channel, the number of users
-- beyond which no events are published, PUBLISH or SPUBLISH, the topic, the number of dead nodes,
-- and those; `first` is where the rest of ARGV begins.
local own, nodes, index = KEYS[1], KEYS[2], KEYS[3]
local node, channel, users_max, publish, topic = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local first = 7 + tonumber(ARGV[6])
local dead = {}
for i = 7, first - 1 do
  dead[ARGV[i]] = true
end

-- The keys of a room's nodes differ in their last 16 characters, and share their slot. Malformed
-- names are ignored.
local names, others = {}, {}
for _, other in ipairs(redis.call('SMEMBERS', nodes)) do
  if other ~= node and not dead[other] and #other == 16 then
    names[#names + 1] = other
    others[#others + 1] = string.sub(own, 1, -17) .. other
  end
end

local function is_elsewhere(user)
  for _, key in ipairs(others) do
    if redis.call('HEXISTS', key, user) == 1 then
      return true
    end
  end
  return false
end

-- A user on two nodes counts twice: only the size of the room matters.
local function has_events()
  local users = redis.call('HLEN', own)
  for _, key in ipairs(others) do
    users = users + redis.call('HLEN', key)
  end
  return users <= users_max
end
