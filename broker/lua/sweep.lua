#!lua flags=allow-oom
-- Forgets objects that were quiet for too long, in every set and key of theirs at once, and counts them.
-- KEYS[1]: the shard's prefix. ARGV: quiet time (ms), at most how many. Returns how many were forgotten.
-- Runs on a full server too, because it frees memory.
local base, ttl, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local forgotten = 0
for _, object in ipairs(redis.call('ZRANGEBYSCORE', base .. 'touched', '-inf', now - ttl, 'LIMIT', 0, limit)) do
  local pending = false
  for _, queue in ipairs({'fresh', 'due', 'inflight'}) do
    pending = pending or redis.call('ZSCORE', base .. queue, object)
  end
  if pending then
    redis.call('ZADD', base .. 'touched', now, object)  -- it waits for an answer: look again after another quiet time
  else
    for _, part in ipairs({'headers', 'stamps', 'order', 'meta', 'latest', 'history', 'tokens'}) do
      redis.call('UNLINK', base .. part .. ':' .. object)
    end
    redis.call('ZREM', base .. 'touched', object)
    redis.call('SREM', base .. 'classified', object)
    redis.call('SREM', base .. 'declined', object)
    redis.call('HINCRBY', base .. 'counts', 'expired', 1)
    forgotten = forgotten + 1
  end
end
return forgotten
