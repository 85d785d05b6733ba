#!lua flags=allow-oom
-- Moves the objects that have been ready for longest to the in-flight set of a model.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, lease token, lease (ms), at most how many fresh, how many due.
-- Returns the objects, each followed by the number of its epochs.
local base, lane, token, lease = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
-- include shared/now.lua
local claimed = {}
for n, queue in ipairs({'fresh', 'due'}) do
  local ready = redis.call('ZRANGEBYSCORE', base .. queue .. lane, '-inf', now, 'LIMIT', 0, ARGV[3 + n])
  for _, object in ipairs(ready) do
    redis.call('ZREM', base .. 'fresh' .. lane, object)
    redis.call('ZREM', base .. 'due' .. lane, object)  -- what an earlier version queued may wait in both
    redis.call('ZADD', base .. 'inflight' .. lane, now + lease, object)
    redis.call('HSET', base .. 'leases' .. lane, object, token)
    claimed[#claimed + 1] = object
    claimed[#claimed + 1] = redis.call('ZCARD', base .. 'order:' .. object)
  end
end
return claimed
