-- The repair window of a server with a new generation: it has restarted, or was a replica in
-- between. It may lack the last messages, or all, and nodes that have them append them within the
-- window, before new messages are stored. One window for all topics of a partition, in a hash: g,
-- the generation whose window is over, and w, "<generation> <end>" of the current window.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The epoch of a history that begins now. In microseconds: one that is deleted and begins again must
-- not have the same, and a script takes longer than one of them.
local function epoch_now()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Milliseconds left of the repair window; nil: it is over.
local function repair_window_ms(partition, generation, grace_ms)
  local p = redis.call('HMGET', partition, 'g', 'w')
  if p[1] == generation then
    return nil
  end
  local now = now_ms()
  local of, till = string.match(p[2] or '', '^(%S+) (%d+)$')
  till = tonumber(till)
  -- An end further away than a window is long was not written here, or the clock went back.
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
