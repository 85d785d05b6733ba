#!lua flags=allow-oom
-- Forgets objects that were quiet for too long, in every set and key of theirs at once, and counts them.
-- KEYS[1]: the shard's prefix. ARGV: quiet time (ms), at most how many. Returns how many were forgotten.
-- Runs on a full server too, because it frees memory.
local base, ttl, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
-- include shared/now.lua
-- include shared/remove.lua

local function pending(object)
  for _, lane in ipairs(every) do
    for _, queue in ipairs({'fresh', 'due', 'inflight'}) do
      if redis.call('ZSCORE', base .. queue .. lane, object) then return true end
    end
  end
  return false
end

local forgotten = 0
for _, object in ipairs(redis.call('ZRANGEBYSCORE', base .. 'touched', '-inf', now - ttl, 'LIMIT', 0, limit)) do
  if pending(object) then
    redis.call('ZADD', base .. 'touched', now, object)  -- it is due: look again after another quiet time
  else
    remove(object)
    redis.call('HINCRBY', base .. 'counts', 'expired', 1)
    forgotten = forgotten + 1
  end
end
return forgotten
