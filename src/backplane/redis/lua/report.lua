-- A node reports how far it is in the repair windows of some partitions, and which other nodes lived
-- when it last knew: the windows wait for those, too. The first report of a link begins the windows,
-- so that all begin together, and not each with the first message. One whose end has passed begins
-- again as long as nothing new was stored: the server may have stood still in the meantime. If the
-- server has chosen another replication id for the data that it has, a window goes on, or stays over,
-- under the new one.
--
-- KEYS partitions
-- ARGV 1 generation of the server  2 milliseconds of a window that goes by time
--      3 the generation before of the same data; empty: there is none
--      4 the node; empty: it reports nothing, and windows are only renamed
--      5 its stage  6 "<node>=<stage> …" the other nodes
-- returns for each partition: the milliseconds after which to ask again; 0: its window is over;
--         WRONG_GENERATION
local generation, before, me, stage = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local grace_ms = tonumber(ARGV[2])

-- Nodes that have never connected are not waited for a second time.
local function begin_again(partition)
  local p = redis.call('HMGET', partition, 'g', 'w', 'n')
  local window = window_of(p[2], p[3])
  if p[1] ~= generation and window and window.of == generation and window.till <= now_ms() then
    window.till = now_ms() + (window.is_timed and grace_ms or WINDOW_MS_MAX)
    window.floor = window.floor or window.till
    window.nodes = string.gsub(window.nodes or '', ' %x+=' .. AWAITED, '')
    write_window(partition, window)
  end
end

-- The stages of all nodes with those that are reported now; whether this node was not connected
-- before; and whether one that was not listed reports nothing.
local function merge(nodes)
  local stages, names, is_late, has_silent = {}, {}, true, false
  local function add(node, its)
    if not stages[node] then
      names[#names + 1] = node
      stages[node] = its
      has_silent = has_silent or its == SILENT
    end
  end
  for node, its in string.gmatch(nodes, '(%x+)=(%w)') do
    add(node, its)
  end
  has_silent = false
  for node, its in string.gmatch(ARGV[6], '(%x+)=(%w)') do
    add(node, its)
  end
  is_late = (stages[me] or AWAITED) == AWAITED
  if not stages[me] then
    names[#names + 1] = me
  end
  stages[me] = stage
  local list = ''
  for _, node in ipairs(names) do
    list = list .. ' ' .. node .. '=' .. stages[node]
  end
  return list, is_late, has_silent
end

local function report(partition)
  if stage == LINKED then
    begin_again(partition)
  end
  local wait = repair_window_ms(partition, generation, grace_ms)
  if not wait or wait == WRONG_GENERATION then
    return wait or '0'
  end
  local p, now = redis.call('HMGET', partition, 'w', 'n'), now_ms()
  local window = window_of(p[1], p[2])
  local list, is_late, has_silent = merge(window.nodes or '')
  if window.nodes == nil or window.nodes == '' then
    -- An end that a node of an older version has set is its own.
    window.floor = window.nodes and 0 or window.till
    window.till, window.is_timed = now + WINDOW_MS_MAX, false
  elseif is_late and not window.is_timed then
    window.till = math.max(window.till, now + LATE_MS)
  end
  if has_silent then
    window.floor = math.max(window.floor, now + grace_ms)
  end
  window.nodes = list
  write_window(partition, window)
  return repair_window_ms(partition, generation, grace_ms) or '0'
end

local replies = {}
for at, partition in ipairs(KEYS) do
  if before ~= '' then
    rename_window(partition, before, generation)
  end
  if me ~= '' then
    replies[at] = report(partition)
  else
    replies[at] = '0'
  end
end
return replies
