#!lua
-- Caches tokens of one shard's objects and drops those of stamps that no longer follow each other.
-- KEYS[1]: the shard's prefix. ARGV: for each object: object, model, revision, number of tokens, and for each token
-- the group's 3 source ids (24 bytes) and the token.
local base, i = KEYS[1], 1
local GROUP = 3

local function drop_old(object, tokens)
  local sources, current = redis.call('ZRANGE', base .. 'order:' .. object, 0, -1), {model = true}
  -- any three neighbours, not only today's groups: a full sequence slides by one stamp at a time, and every third
  -- time its groups are the same ones again
  for first = 1, #sources - GROUP + 1 do
    current[sources[first] .. sources[first + 1] .. sources[first + 2]] = true
  end
  for _, group in ipairs(redis.call('HKEYS', tokens)) do
    if not current[group] then redis.call('HDEL', tokens, group) end
  end
end

while i <= #ARGV do
  local object, model, revision, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local tokens, meta = base .. 'tokens:' .. object, redis.call('HMGET', base .. 'meta:' .. object, 'rev', 'data')
  -- a token of before a stored stamp was replaced is another stamp's
  if meta[1] and revision >= (tonumber(meta[2]) or 0) then
    if redis.call('HGET', tokens, 'model') ~= model then
      redis.call('DEL', tokens)
      redis.call('HSET', tokens, 'model', model)
    end
    for n = i + 4, i + 2 + 2 * count, 2 do
      redis.call('HSET', tokens, ARGV[n], ARGV[n + 1])
    end
    drop_old(object, tokens)
  end
  i = i + 4 + 2 * count
end
