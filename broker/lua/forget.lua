-- Takes objects of one shard off the lists whose stamps are gone: quiet for longer than ttl and not pending, or pending
-- although their sequence expired. Counts them, so that the books still balance.
-- KEYS[1]: the shard's prefix
-- ARGV: now (ms), ttl (s), most objects to look at
-- Returns how many were forgotten.
local shard, now, ttl, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local forgotten = 0
for _, object in ipairs(redis.call('ZRANGEBYSCORE', shard .. 'touched', '-inf', now - 1000 * ttl, 'LIMIT', 0, most)) do
  if redis.call('EXISTS', shard .. 'q:' .. object) == 0 then
    for _, list in ipairs({'touched', 'fresh', 'due', 'flight'}) do redis.call('ZREM', shard .. list, object) end
    redis.call('HDEL', shard .. 'lease', object)
    redis.call('SREM', shard .. 'classified', object)
    redis.call('SREM', shard .. 'declined', object)
    forgotten = forgotten + 1
  end
end
if forgotten > 0 then redis.call('INCRBY', shard .. 'expired', forgotten) end
return forgotten
