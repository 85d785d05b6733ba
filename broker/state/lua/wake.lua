#!lua flags=allow-oom
-- Returns objects whose lease is over to the queue of a model, and tells what is ready.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix.
-- Returns {fresh ready, due ready, oldest ready time of either or -1}.
local base, lane = KEYS[1], ARGV[1]
-- workers ask often, and most shards are empty most of the time
if redis.call('EXISTS', base .. 'fresh' .. lane, base .. 'due' .. lane, base .. 'inflight' .. lane) == 0 then
  return {0, 0, -1}
end
-- include shared/now.lua
local over = redis.call('ZRANGEBYSCORE', base .. 'inflight' .. lane, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 1, #over, 2 do
  local object = over[i]
  redis.call('ZREM', base .. 'inflight' .. lane, object)
  redis.call('HDEL', base .. 'leases' .. lane, object)
  local queue = redis.call('HEXISTS', base .. 'meta:' .. object, 'ans' .. lane) == 1 and 'due' or 'fresh'
  redis.call('ZADD', base .. queue .. lane, over[i + 1], object)
end
local ready, oldest = {}, -1
for n, queue in ipairs({'fresh', 'due'}) do
  ready[n] = redis.call('ZCOUNT', base .. queue .. lane, '-inf', now)
  local first = redis.call('ZRANGE', base .. queue .. lane, 0, 0, 'WITHSCORES')
  if first[2] and (oldest < 0 or tonumber(first[2]) < oldest) then oldest = tonumber(first[2]) end
end
return {ready[1], ready[2], oldest}
