#!lua flags=allow-oom
-- Gives claimed objects back to the queue, ready at once.
-- KEYS[1]: the shard's prefix. ARGV: two for each object: object, lease. Returns how many were still held.
local base = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local released = 0
for i = 1, #ARGV, 2 do
  local object = ARGV[i]
  if redis.call('HGET', base .. 'leases', object) == ARGV[i + 1] then
    redis.call('ZREM', base .. 'inflight', object)
    redis.call('HDEL', base .. 'leases', object)
    local queue = redis.call('HEXISTS', base .. 'meta:' .. object, 'ans') == 1 and 'due' or 'fresh'
    redis.call('ZADD', base .. queue, now, object)
    released = released + 1
  end
end
return released
