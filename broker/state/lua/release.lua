#!lua flags=allow-oom
-- Ends leases of a model before their time; the next look at the queue returns the objects to it (wake.lua).
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, then two for each: object, lease.
-- Returns how many were still held.
local base, lane, held = KEYS[1], ARGV[1], 0
-- include shared/now.lua
for i = 2, #ARGV, 2 do
  if redis.call('HGET', base .. 'leases' .. lane, ARGV[i]) == ARGV[i + 1] then
    redis.call('ZADD', base .. 'inflight' .. lane, now, ARGV[i])
    held = held + 1
  end
end
return held
