-- What every script knows of the pause that a server makes which is another one than last time: it
-- restarted, or has been a replica in between. It may lack the last of what was said, or everything, and
-- nodes that have heard it put it back. One pause for all topics of a partition: a hash of g, whose
-- generation has made its pause, and w, "<generation> <end>" of the one that is being made.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- For how many milliseconds nothing new may begin; nil: it may.
local function pause(partition, generation, grace_ms)
  local p = redis.call('HMGET', partition, 'g', 'w')
  if p[1] == generation then
    return nil
  end
  local now = now_ms()
  local of, till = string.match(p[2] or '', '^(%S+) (%d+)$')
  till = tonumber(till)
  -- An end that is further away than a pause is long was not written here, or the clock went back.
  if of ~= generation or till > now + grace_ms then
    till = now + grace_ms
    redis.call('HSET', partition, 'w', generation .. ' ' .. string.format('%.0f', till))
  end
  if now < till then
    return string.format('%.0f', till - now)
  end
  redis.call('HSET', partition, 'g', generation)
  redis.call('HDEL', partition, 'w')
  return nil
end
