#!lua flags=allow-oom
-- Acknowledges classifications of one shard by one model.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, longest history, then six for each: object, lease, revision,
-- "classified" or "declined", the classification, its line in the history.
-- Returns for each 1 acknowledged, 2 queued again (the object changed meanwhile), 3 stale (the lease is gone).
-- Runs on a full server too: what it adds is bounded, and the queue can drain.
local base, lane, longest = KEYS[1], ARGV[1], tonumber(ARGV[2])
local ACKED, REQUEUED, STALE = 1, 2, 3
-- include shared/now.lua
-- include shared/keep_classification.lua

local function settle(object, lease, revision, set, latest, line)
  if redis.call('HGET', base .. 'leases' .. lane, object) ~= lease then return STALE end
  local meta = redis.call('HMGET', base .. 'meta:' .. object, 'rev', 'ans' .. lane)
  redis.call('ZREM', base .. 'inflight' .. lane, object)
  redis.call('HDEL', base .. 'leases' .. lane, object)
  if tonumber(revision) >= (tonumber(meta[2]) or 0) then
    keep_classification(object, revision, latest, line)
  end
  if meta[1] ~= revision then
    redis.call('ZADD', base .. 'due' .. lane, now, object)
    return REQUEUED
  end
  redis.call('SADD', base .. set .. lane, object)
  return ACKED
end

local settled = {}
for i = 3, #ARGV, 6 do
  settled[#settled + 1] = settle(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
end
return settled
