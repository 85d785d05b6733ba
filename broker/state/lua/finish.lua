#!lua
-- Takes a partition that nothing comes to any more off the list of partitions and adds its counts to those of all such.
-- KEYS[1]: the survey's prefix. ARGV: the partition, its counts as "name number name number …".
-- Returns 1, or 0 where another did it before.
local base, partition, counts = KEYS[1], ARGV[1], ARGV[2]
if redis.call('HSETNX', base .. 'finished', partition, counts) == 0 then return 0 end
redis.call('SREM', base .. 'partitions', partition)
for name, number in string.gmatch(counts, '(%S+) (%d+)') do
  redis.call('HINCRBY', base .. 'totals', name, number)
end
return 1
