#!lua
-- Keeps what a model wants to see again of one shard's objects (tokens), and drops those of epochs that no longer
-- follow each other.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, epochs that one token belongs to, then for each object: object,
-- version, revision, number of tokens, and for each token the source ids of its epochs (8 bytes each) and the token.
local base, lane, span, i = KEYS[1], ARGV[1], tonumber(ARGV[2]), 3

local function drop_old(object, tokens)
  local sources, current = redis.call('ZRANGE', base .. 'order:' .. object, 0, -1), {model = true}
  -- any neighbours, not only today's groups: a full history slides by one epoch at a time, and its groups are the
  -- same ones again after as many epochs as a group has
  for first = 1, #sources - span + 1 do
    current[table.concat(sources, '', first, first + span - 1)] = true
  end
  for _, group in ipairs(redis.call('HKEYS', tokens)) do
    if not current[group] then redis.call('HDEL', tokens, group) end
  end
end

while i <= #ARGV do
  local object, version, revision, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local tokens, meta = base .. 'tokens' .. lane .. ':' .. object, redis.call('HMGET', base .. 'meta:' .. object, 'rev', 'data')
  -- a token of before a stored stamp was replaced is another stamp's
  if meta[1] and revision >= (tonumber(meta[2]) or 0) then
    if redis.call('HGET', tokens, 'model') ~= version then
      redis.call('DEL', tokens)
      redis.call('HSET', tokens, 'model', version)
    end
    for n = i + 4, i + 2 + 2 * count, 2 do
      redis.call('HSET', tokens, ARGV[n], ARGV[n + 1])
    end
    drop_old(object, tokens)
  end
  i = i + 4 + 2 * count
end
