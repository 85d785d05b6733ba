#!lua flags=allow-oom
-- Forgets objects of which the server has lost a part (evicted or deleted by hand), and counts them as lost.
-- KEYS[1]: the shard's prefix. ARGV: the suffix of the model that claimed them, then two for each: object, lease.
local base, mine = KEYS[1], ARGV[1]

-- include shared/remove.lua

for i = 2, #ARGV, 2 do
  if redis.call('HGET', base .. 'leases' .. mine, ARGV[i]) == ARGV[i + 1] then
    remove(ARGV[i])
    redis.call('HINCRBY', base .. 'counts', 'lost', 1)
  end
end
