-- The repair window of a server with a new generation: it has restarted, or was a replica in
-- between. It may lack the last messages, or all, and nodes that have them append them within the
-- window, before new messages are stored. One window for all topics of a partition, in a hash:
--
--   g  the generation whose window is over
--   w  "<generation> <end>": the current window
--   n  "<generation> <end> <floor> <node>=<stage> …": the nodes for which it waits, and how far each
--      of them is; it does not end before the floor
--
-- A window with nodes is over when all of them have put back everything, at its end at the latest.
-- One without nodes goes by its end alone, and so does one whose end a node of an older version has
-- set, which shows in ends that differ. src/backplane/redis/server/window_reports.rs says who reports
-- what.
--
-- Nodes may believe different generations of one server, such as in the moment in which a replica
-- attaches. Only the generation that the server reports itself begins or ends a window: two that are
-- believed would begin each other's again and again.

-- How far a node is: not connected yet, connected, it has put back all that follows what is there
-- already, it has put back all that it has. One of an older version reports nothing.
local AWAITED, LINKED, FOLLOWED, DONE, SILENT = '0', '1', '2', '3', 'o'
-- How long a window waits for nodes, and how much of it one has that connects late: REPAIR_MS_MAX in
-- src/backplane/redis/scripts.rs is the former.
local WINDOW_MS_MAX, LATE_MS = 5000, 1000
-- How long a publisher waits before it asks again, while nodes report.
local ASK_AGAIN_MS = 40
-- The end of a window that goes by time in which messages behind a gap are put back.
local LAST_MS = 300

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function integer(number)
  return string.format('%.0f', number)
end

-- The epoch of a history that begins now. In microseconds: one that is deleted and begins again must
-- not have the same, and a script takes longer than one of them.
local function epoch_now()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- What is returned instead of a time where the server has another generation.
local WRONG_GENERATION = '-1'

-- The server's replication id, once a script has asked for it.
local current_id

-- Whether the server's replication id, which may change while it runs, is that of a generation. Who
-- does not report it is believed.
local function is_current(generation)
  if current_id == nil then
    local info = redis.pcall('INFO', 'replication')
    current_id = type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or false
  end
  return not current_id or string.sub(current_id, 1, 16) == string.sub(generation, 17, 32)
end

-- The window of a partition: generation and end; of the nodes for which it waits the floor and the
-- list with their stages, if there ever was one; and whether it goes by its end alone. nil: there is
-- none.
local function window_of(w, n)
  local of, till = string.match(w or '', '^(%S+) (%d+)$')
  if not of then
    return nil
  end
  local window = { of = of, till = tonumber(till), is_timed = true }
  local nodes_of, nodes_till, floor, nodes = string.match(n or '', '^(%S+) (%d+) (%d+)(.*)$')
  if nodes_of == of then
    window.floor, window.nodes = tonumber(floor), nodes
    window.is_timed = nodes_till ~= till or nodes == ''
  end
  return window
end

-- The least stage of all nodes that report; nil: there are none.
local function least_stage(window)
  local least
  for stage in string.gmatch(window.is_timed and '' or window.nodes, '=(%d)') do
    if not least or stage < least then least = stage end
  end
  return least
end

local function write_window(partition, window)
  local w = window.of .. ' ' .. integer(window.till)
  local n = window.of .. ' ' .. (window.is_timed and '0' or integer(window.till))
  redis.call('HSET', partition, 'w', w, 'n', n .. ' ' .. integer(window.floor) .. window.nodes)
end

-- A partition has the same data under another generation.
local function rename_window(partition, before, generation)
  local p = redis.call('HMGET', partition, 'g', 'w', 'n')
  if p[1] == before then
    redis.call('HSET', partition, 'g', generation)
  end
  local window = window_of(p[2], p[3])
  if window and window.of == before then
    window.of = generation
    if window.nodes then
      write_window(partition, window)
    else
      redis.call('HSET', partition, 'w', generation .. ' ' .. integer(window.till))
    end
  end
end

-- Milliseconds after which to ask again, or WRONG_GENERATION; nil: the window is over. With a time,
-- also: the milliseconds that are left at most, and whether all nodes have put back what follows what
-- is there already.
local function repair_window_ms(partition, generation, grace_ms)
  local p = redis.call('HMGET', partition, 'g', 'w', 'n')
  if p[1] == generation then
    return nil
  end
  local now = now_ms()
  local window = window_of(p[2], p[3])
  -- An end further away than a window is long was not written here, or the clock went back.
  if not window or window.of ~= generation or window.till > now + WINDOW_MS_MAX then
    if not is_current(generation) then
      return WRONG_GENERATION
    end
    window = { of = generation, till = now + grace_ms, is_timed = true, floor = 0, nodes = '' }
    write_window(partition, window)
  end
  local stage, left = least_stage(window), window.till - now
  if stage == DONE and now >= window.floor then
    left = 0
  end
  if left > 0 then
    local have_followed = stage and stage >= FOLLOWED and now >= window.floor - LAST_MS
    local again = stage and math.min(left, ASK_AGAIN_MS) or left
    return integer(again), left, have_followed
  end
  if not is_current(generation) then
    return WRONG_GENERATION
  end
  redis.call('HSET', partition, 'g', generation)
  redis.call('HDEL', partition, 'w', 'n')
  return nil
end
