-- Reads the revocations that changed after the one that a node has read last. If that is not there as
-- the node knows it (the keys have vanished, or a promoted replica lacks it), all of them from the
-- first one.
--
-- KEYS 1 hash: of each subject "<issued before> <until>"
--      2 sorted set: subjects by the number of their last change
-- ARGV 1 the number that was read last, 0 if none  2 its subject  3 how many are wanted
-- returns whether what was read last is there (1) or not (0); then of each: subject, the hash's value,
-- number
local from = ARGV[1]
local score = redis.call('ZSCORE', KEYS[2], ARGV[2])
local is_known = score and tonumber(score) == tonumber(from)
if not is_known then
  from = '0'
end
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local answer = { is_known and 1 or 0 }
for at = 1, #found, 2 do
  answer[#answer + 1] = found[at]
  answer[#answer + 1] = redis.call('HGET', KEYS[1], found[at]) or ''
  answer[#answer + 1] = string.format('%.0f', tonumber(found[at + 1]))
end
return answer
