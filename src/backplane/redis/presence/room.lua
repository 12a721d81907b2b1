-- What both scripts know of a room. KEYS: the users that one node has there, the room's nodes, and the
-- topics that the node has in this partition. ARGV: that node, the room's channel, how many users a
-- room may have that is told of them, PUBLISH or SPUBLISH, the topic, how many nodes are dead, and
-- those; `first` is where the rest of ARGV begins.
local own, nodes, index = KEYS[1], KEYS[2], KEYS[3]
local node, channel, users_max, publish, topic = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local first = 7 + tonumber(ARGV[6])
local dead = {}
for i = 7, first - 1 do
  dead[ARGV[i]] = true
end

-- The keys of a room's nodes differ in their last 16 characters, and share their slot. What is no node's
-- name stands for nobody.
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

-- Who is on two nodes counts twice: this asks whether a room is large, and no more.
local function is_told()
  local users = redis.call('HLEN', own)
  for _, key in ipairs(others) do
    users = users + redis.call('HLEN', key)
  end
  return users <= users_max
end
