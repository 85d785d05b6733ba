#!lua
-- Makes a model known to a shard: from now on every change of an object is due for it.
-- KEYS[1]: the shard's prefix. ARGV: model, "all" to make it due for every object that is there, too.
-- The first model takes over what waited for any, and what release 0.1 had, which knew one model only.
-- Returns how many objects were there before it and are not due for it.
local base, name, backlog = KEYS[1], ARGV[1], ARGV[2] == 'all'
local lane = '.' .. name
if redis.call('SISMEMBER', base .. 'models', name) == 1 then return redis.call('ZCARD', base .. 'unasked' .. lane) end
local first = redis.call('SCARD', base .. 'models') == 0
redis.call('SADD', base .. 'models', name)
if first then
  for _, part in ipairs({'fresh', 'due', 'inflight', 'leases', 'classified', 'declined', 'unasked'}) do
    if redis.call('EXISTS', base .. part) == 1 then redis.call('RENAME', base .. part, base .. part .. lane) end
  end
end
local known = {}
for _, part in ipairs({'fresh', 'due', 'inflight', 'classified', 'declined'}) do known[#known + 1] = base .. part .. lane end
redis.call('ZDIFFSTORE', base .. 'unasked' .. lane, #known + 1, base .. 'touched', unpack(known))
if backlog then
  redis.call('ZUNIONSTORE', base .. 'due' .. lane, 2, base .. 'due' .. lane, base .. 'unasked' .. lane)
  redis.call('DEL', base .. 'unasked' .. lane)
end
return redis.call('ZCARD', base .. 'unasked' .. lane)
