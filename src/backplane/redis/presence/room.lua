-- What both scripts know of a room. KEYS: the users that one node has there, and the room's nodes.
-- ARGV: that node, the room's channel, how many users a room may have that is told of them, how many
-- nodes are dead, and those; `first` is where the rest of ARGV begins.
local own, nodes = KEYS[1], KEYS[2]
local node, channel, users_max = ARGV[1], ARGV[2], tonumber(ARGV[3])
local first = 5 + tonumber(ARGV[4])
local dead = {}
for i = 5, first - 1 do
  dead[ARGV[i]] = true
end

-- The keys of a room's nodes differ in their last 16 characters, and share their slot.
local others = {}
for _, other in ipairs(redis.call('SMEMBERS', nodes)) do
  if other ~= node and not dead[other] then
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
