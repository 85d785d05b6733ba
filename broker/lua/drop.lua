#!lua flags=allow-oom
-- Forgets objects of which the server has lost a part (evicted or deleted by hand), and counts them as lost.
-- KEYS[1]: the shard's prefix. ARGV: two for each object: object, lease.
local base = KEYS[1]
for i = 1, #ARGV, 2 do
  local object = ARGV[i]
  if redis.call('HGET', base .. 'leases', object) == ARGV[i + 1] then
    for _, part in ipairs({'headers', 'stamps', 'order', 'meta', 'latest', 'history', 'tokens'}) do
      redis.call('UNLINK', base .. part .. ':' .. object)
    end
    for _, set in ipairs({'fresh', 'due', 'inflight', 'touched'}) do
      redis.call('ZREM', base .. set, object)
    end
    redis.call('HDEL', base .. 'leases', object)
    redis.call('SREM', base .. 'classified', object)
    redis.call('SREM', base .. 'declined', object)
    redis.call('HINCRBY', base .. 'counts', 'lost', 1)
  end
end
