-- include shared/lanes.lua

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
