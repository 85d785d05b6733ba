#!lua flags=allow-oom
-- Acknowledges answers of one shard.
-- KEYS[1]: the shard's prefix. ARGV: longest history, then six for each answer: object, lease, revision,
-- "classified" or "declined", the classification, its line in the history.
-- Returns for each answer 1 acknowledged, 2 queued again (the object changed meanwhile), 3 stale (the lease is gone).
-- Runs on a full server too: what it adds is bounded, and the queue can drain.
local base, longest = KEYS[1], tonumber(ARGV[1])
local ACKED, REQUEUED, STALE = 1, 2, 3
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function settle(object, lease, revision, set, latest, line)
  if redis.call('HGET', base .. 'leases', object) ~= lease then return STALE end
  local meta = redis.call('HMGET', base .. 'meta:' .. object, 'rev', 'ans')
  redis.call('ZREM', base .. 'inflight', object)
  redis.call('HDEL', base .. 'leases', object)
  if tonumber(revision) >= (tonumber(meta[2]) or 0) then
    redis.call('SET', base .. 'latest:' .. object, latest)
    redis.call('RPUSH', base .. 'history:' .. object, line)
    redis.call('LTRIM', base .. 'history:' .. object, -longest, -1)
    redis.call('HSET', base .. 'meta:' .. object, 'ans', revision)
  end
  if meta[1] ~= revision then
    redis.call('ZADD', base .. 'due', now, object)
    return REQUEUED
  end
  redis.call('SADD', base .. set, object)
  return ACKED
end

local settled = {}
for i = 2, #ARGV, 6 do
  settled[#settled + 1] = settle(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
end
return settled
