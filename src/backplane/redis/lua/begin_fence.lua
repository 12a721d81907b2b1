-- A node has come to a server: the pause of each partition begins at once, for all together, and not
-- with the first message of each.
--
-- KEYS 1 partition
-- ARGV 1 generation of the server  2 milliseconds of the pause
return pause(KEYS[1], ARGV[1], ARGV[2]) or '0'
