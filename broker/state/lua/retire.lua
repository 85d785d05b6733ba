#!lua flags=allow-oom
-- Makes a shard forget a model: its queue, its books; what it said of each object goes with `UNLINK` from outside.
-- KEYS[1]: the shard's prefix. ARGV: model. Returns 1 if it was known.
-- Where it was the last one, its queue and books wait for the next model.
local base, name = KEYS[1], ARGV[1]
local lane = '.' .. name
if redis.call('SREM', base .. 'models', name) == 0 then return 0 end
redis.call('HDEL', base .. 'needs', name)
local last = redis.call('SCARD', base .. 'models') == 0
for _, part in ipairs({'fresh', 'due', 'inflight', 'leases', 'classified', 'declined', 'unasked'}) do
  if last and redis.call('EXISTS', base .. part .. lane) == 1 then
    redis.call('RENAME', base .. part .. lane, base .. part)
  else
    redis.call('UNLINK', base .. part .. lane)
  end
end
return 1
