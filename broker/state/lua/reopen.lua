#!lua
-- Puts partitions on the list of partitions; the counts of those that were finished are theirs again.
-- KEYS[1]: the survey's prefix. ARGV: the partitions.
local base = KEYS[1]
for _, partition in ipairs(ARGV) do
  local counts = redis.call('HGET', base .. 'finished', partition)
  if counts then
    redis.call('HDEL', base .. 'finished', partition)
    for name, number in string.gmatch(counts, '(%S+) (%d+)') do
      redis.call('HINCRBY', base .. 'totals', name, -number)
    end
  end
  redis.call('SADD', base .. 'partitions', partition)
end
