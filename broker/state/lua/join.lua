#!lua
-- Makes models known to a shard: from now on every change of an object is due for them.
-- KEYS[1]: the shard's prefix. ARGV: three for each model: its name, "all" to make it due for every object that is there,
-- what has to be there before the pixels of an epoch may be dropped (`Lane.sees`; "" to leave unsaid).
-- Where no model is known yet, the first takes over what waited for any (and what release 0.1 had, which knew one model
-- only), and all are due for every object. What a release 0.1 that ran again in between left waiting becomes due for all
-- that are known. Returns for each how many objects are there and not due for it.
local base = KEYS[1]
local nobody = redis.call('SCARD', base .. 'models') == 0

local function take_over(lane)
  for _, part in ipairs({'fresh', 'due', 'inflight', 'leases', 'classified', 'declined', 'unasked'}) do
    if redis.call('EXISTS', base .. part) == 1 then redis.call('RENAME', base .. part, base .. part .. lane) end
  end
end

local function begin(lane, all)
  local known = {}
  for _, part in ipairs({'fresh', 'due', 'inflight', 'classified', 'declined'}) do
    known[#known + 1] = base .. part .. lane
  end
  redis.call('ZDIFFSTORE', base .. 'unasked' .. lane, #known + 1, base .. 'touched', unpack(known))
  if all then
    redis.call('ZUNIONSTORE', base .. 'due' .. lane, 2, base .. 'due' .. lane, base .. 'unasked' .. lane)
    redis.call('DEL', base .. 'unasked' .. lane)
  end
end

local function adopt(lane, part)
  local strays = base .. 'strays'
  redis.call('ZDIFFSTORE', strays, 3, base .. part, base .. 'fresh' .. lane, base .. 'inflight' .. lane)
  for at = 0, redis.call('ZCARD', strays) - 1, 500 do
    local some = redis.call('ZRANGE', strays, at, at + 499)
    redis.call('SREM', base .. 'classified' .. lane, unpack(some))
    redis.call('SREM', base .. 'declined' .. lane, unpack(some))
    redis.call('ZREM', base .. 'unasked' .. lane, unpack(some))
  end
  redis.call('ZUNIONSTORE', base .. 'due' .. lane, 2, base .. 'due' .. lane, strays, 'AGGREGATE', 'MIN')
  redis.call('DEL', strays)
end

local left = {}
for i = 1, #ARGV, 3 do
  local lane = '.' .. ARGV[i]
  if ARGV[i + 2] ~= '' then redis.call('HSET', base .. 'needs', ARGV[i], ARGV[i + 2]) end
  if redis.call('SADD', base .. 'models', ARGV[i]) == 1 then
    if nobody and i == 1 then take_over(lane) end
    begin(lane, nobody or ARGV[i + 1] == 'all')
  end
end
for _, part in ipairs({'fresh', 'due', 'inflight'}) do
  if redis.call('EXISTS', base .. part) == 1 then
    for _, model in ipairs(redis.call('SMEMBERS', base .. 'models')) do adopt('.' .. model, part) end
    redis.call('DEL', base .. part)
  end
end
redis.call('DEL', base .. 'leases')
for i = 1, #ARGV, 3 do left[#left + 1] = redis.call('ZCARD', base .. 'unasked.' .. ARGV[i]) end
return left
