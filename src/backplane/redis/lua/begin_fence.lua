-- Begins the repair window of a partition when a node connects to a server of a new generation, so
-- that all windows begin together, and not each with the first message. One whose end has passed
-- begins again as long as nothing new was stored: the server may have stood still meanwhile, and who
-- connects now has put back nothing yet. If the server has chosen
-- another replication id for the data that it has, the window of the generation before goes on, or
-- stays over, under the new one.
--
-- KEYS 1 partition
-- ARGV 1 generation of the server  2 milliseconds of the repair window
--      3 the generation before of the same data; empty: there is none
if ARGV[3] ~= '' then
  rename_window(KEYS[1], ARGV[3], ARGV[1])
end
local p = redis.call('HMGET', KEYS[1], 'g', 'w')
local of, till = string.match(p[2] or '', '^(%S+) (%d+)$')
if p[1] ~= ARGV[1] and of == ARGV[1] and tonumber(till) <= now_ms() then
  redis.call('HDEL', KEYS[1], 'w')
end
return repair_window_ms(KEYS[1], ARGV[1], ARGV[2]) or '0'
