-- The repair window of a server with a new generation: it has restarted, or was a replica in
-- between. It may lack the last messages, or all, and nodes that have them append them within the
-- window, before new messages are stored. One window for all topics of a partition, in a hash: g,
-- the generation whose window is over, and w, "<generation> <end>" of the current window.
--
-- Nodes may believe different generations of one server, such as in the moment in which a replica
-- attaches. Only the generation that the server reports itself begins or ends a window: two that are
-- believed would begin each other's again and again.
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

-- What is returned instead of a time where the server has another generation.
local WRONG_GENERATION = '-1'

-- Whether the server's replication id, which may change while it runs, is that of a generation. Who
-- does not report it is believed.
local function is_current(generation)
  local info = redis.pcall('INFO', 'replication')
  local id = type(info) == 'string' and string.match(info, 'master_replid:(%w+)')
  return not id or string.sub(id, 1, 16) == string.sub(generation, 17, 32)
end

-- A partition has the same data under another generation.
local function rename_window(partition, before, generation)
  local p = redis.call('HMGET', partition, 'g', 'w')
  if p[1] == before then
    redis.call('HSET', partition, 'g', generation)
  end
  local of, till = string.match(p[2] or '', '^(%S+) (%d+)$')
  if of == before then
    redis.call('HSET', partition, 'w', generation .. ' ' .. till)
  end
end

-- Milliseconds left of the repair window, or WRONG_GENERATION; nil: it is over.
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
    if not is_current(generation) then
      return WRONG_GENERATION
    end
    till = now + grace_ms
    redis.call('HSET', partition, 'w', generation .. ' ' .. string.format('%.0f', till))
  end
  if now < till then
    return string.format('%.0f', till - now)
  end
  if not is_current(generation) then
    return WRONG_GENERATION
  end
  redis.call('HSET', partition, 'g', generation)
  redis.call('HDEL', partition, 'w')
  return nil
end
