#!lua flags=allow-oom
-- Forgets objects of which the server has lost a part (evicted or deleted by hand), and counts them as lost.
-- KEYS[1]: the shard's prefix. ARGV: the suffix of the model that claimed them, then two for each: object, lease.
local base, mine = KEYS[1], ARGV[1]

-- The suffixes of the models that are known; one empty suffix while there is none.
local function lanes()
  local names = redis.call('SMEMBERS', base .. 'models')
  if #names == 0 then return {''} end
  for n, name in ipairs(names) do names[n] = '.' .. name end
  return names
end

local every = lanes()

-- Takes an object out of every set and key, also out of those of release 0.1, which knew one model.
local function remove(object)
  local parts = {'headers', 'stamps', 'seen', 'further', 'templates', 'points', 'context', 'order', 'meta', 'latest', 'history', 'tokens'}
  for _, part in ipairs(parts) do
    redis.call('UNLINK', base .. part .. ':' .. object)
  end
  redis.call('ZREM', base .. 'touched', object)
  for _, lane in ipairs(every) do
    for _, part in ipairs({'latest', 'history', 'tokens'}) do
      redis.call('UNLINK', base .. part .. lane .. ':' .. object)
    end
    for _, set in ipairs({'fresh', 'due', 'inflight', 'unasked'}) do
      redis.call('ZREM', base .. set .. lane, object)
    end
    redis.call('HDEL', base .. 'leases' .. lane, object)
    redis.call('SREM', base .. 'classified' .. lane, object)
    redis.call('SREM', base .. 'declined' .. lane, object)
  end
end

for i = 2, #ARGV, 2 do
  if redis.call('HGET', base .. 'leases' .. mine, ARGV[i]) == ARGV[i + 1] then
    remove(ARGV[i])
    redis.call('HINCRBY', base .. 'counts', 'lost', 1)
  end
end
