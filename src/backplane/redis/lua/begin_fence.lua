-- Begins the repair window of a partition when a node connects to a server of a new generation, so
-- that all windows begin together, and not each with the first message.
--
-- KEYS 1 partition
-- ARGV 1 generation of the server  2 milliseconds of the repair window
return repair_window_ms(KEYS[1], ARGV[1], ARGV[2]) or '0'
