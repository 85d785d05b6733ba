#!lua flags=allow-oom
-- Forgets objects that were quiet for too long, in every set and key of theirs at once, and counts them.
-- KEYS[1]: the shard's prefix. ARGV: quiet time (ms), at most how many. Returns how many were forgotten.
-- Runs on a full server too, because it frees memory.
local base, ttl, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

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
