#!lua flags=allow-oom
-- Returns objects whose lease is over to the queue, and tells what is ready.
-- KEYS[1]: the shard's prefix. Returns {fresh ready, due ready, oldest ready time of either or -1}.
local base = KEYS[1]
-- workers ask often, and most shards are empty most of the time
if redis.call('EXISTS', base .. 'fresh', base .. 'due', base .. 'inflight') == 0 then return {0, 0, -1} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local over = redis.call('ZRANGEBYSCORE', base .. 'inflight', '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 1, #over, 2 do
  local object = over[i]
  redis.call('ZREM', base .. 'inflight', object)
  redis.call('HDEL', base .. 'leases', object)
  local queue = redis.call('HEXISTS', base .. 'meta:' .. object, 'ans') == 1 and 'due' or 'fresh'
  redis.call('ZADD', base .. queue, over[i + 1], object)
end
local ready, oldest = {}, -1
for n, queue in ipairs({'fresh', 'due'}) do
  ready[n] = redis.call('ZCOUNT', base .. queue, '-inf', now)
  local first = redis.call('ZRANGE', base .. queue, 0, 0, 'WITHSCORES')
  if first[2] and (oldest < 0 or tonumber(first[2]) < oldest) then oldest = tonumber(first[2]) end
end
return {ready[1], ready[2], oldest}
