#!lua flags=allow-oom
-- Moves the objects that have been ready for longest to the in-flight set.
-- KEYS[1]: the shard's prefix. ARGV: lease token, lease (ms), at most how many fresh, at most how many due.
-- Returns the objects.
local base, token, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed = {}
for n, queue in ipairs({'fresh', 'due'}) do
  local ready = redis.call('ZRANGEBYSCORE', base .. queue, '-inf', now, 'LIMIT', 0, ARGV[2 + n])
  for _, object in ipairs(ready) do
    redis.call('ZREM', base .. queue, object)
    redis.call('ZADD', base .. 'inflight', now + lease, object)
    redis.call('HSET', base .. 'leases', object, token)
    claimed[#claimed + 1] = object
  end
end
return claimed
