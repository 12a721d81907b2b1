-- Stores revocations of tokens. Later moments win, so a repetition changes nothing. Some of those that
-- are over are deleted first.
--
-- KEYS 1 hash: of each subject "<issued before> <until>"; in "#" the number of the last change, in
--        "##" the latest "until"
--      2 sorted set: subjects by the number of their last change
--      3 sorted set: subjects by their "until"
-- ARGV 1 how many there may be; then of each: subject, issued before, until, in seconds since 1970
-- returns how many were refused because there are so many
local time = redis.call('TIME')
local now = tonumber(time[1])
for _, subject in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 128)) do
  redis.call('HDEL', KEYS[1], subject)
  redis.call('ZREM', KEYS[2], subject)
  redis.call('ZREM', KEYS[3], subject)
end
local refused = 0
-- Numbers rise with the time too: after the keys have vanished none of the old ones is used again.
local change = math.max(tonumber(redis.call('HGET', KEYS[1], '#') or '0') or 0, now * 1000000 + tonumber(time[2]))
local last = math.max(tonumber(redis.call('HGET', KEYS[1], '##') or '0') or 0, now)
for at = 2, #ARGV, 3 do
  local subject, before, ends = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local is_new = true
  local known = redis.call('HGET', KEYS[1], subject)
  local known_before, known_ends = string.match(known or '', '^(%d+) (%d+)$')
  if known_before then
    known_before, known_ends = tonumber(known_before), tonumber(known_ends)
    is_new = before > known_before or ends > known_ends
    before, ends = math.max(before, known_before), math.max(ends, known_ends)
  elseif redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[1]) then
    refused = refused + 1
    is_new = false
  end
  if is_new then
    change = change + 1
    last = math.max(last, ends)
    redis.call('HSET', KEYS[1], subject, string.format('%.0f %.0f', before, ends),
      '#', string.format('%.0f', change), '##', string.format('%.0f', last))
    redis.call('ZADD', KEYS[2], string.format('%.0f', change), subject)
    redis.call('ZADD', KEYS[3], string.format('%.0f', ends), subject)
  end
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, string.format('%.0f', last - now + 3600))
end
return refused
