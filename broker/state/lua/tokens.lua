#!lua
-- Keeps what a model wants to see again of one shard's objects (tokens), drops those of epochs that no longer follow
-- each other or that the model takes no more, and the pixels that every model has seen, if they are not to be kept
-- (redis.keep_pixels).
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, epochs that one token belongs to, most epochs that it takes, "seen"
-- to drop pixels or "", then for each object: object, version, revision, number of tokens, and for each token the source
-- ids of its epochs (8 bytes each) and the token.
local base, lane, span, most = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local dropping, i = ARGV[4] == 'seen', 5
-- include shared/images.lua

-- The models that look at images: suffix, version of what they keep, most epochs they take; nothing where one has not
-- said what it needs, or none looks.
local function lookers()
  local found = {}
  for _, name in ipairs(redis.call('SMEMBERS', base .. 'models')) do
    local needs = redis.call('HGET', base .. 'needs', name)
    local most, version = string.match(needs or '', '^(%d+) (.*)$')
    if not most then return {} end
    if tonumber(most) > 0 then found[#found + 1] = {'.' .. name, version, tonumber(most)} end
  end
  return found
end

local looking = dropping and lookers() or {}

-- Drops the pixels of an epoch; what stays is the digest that another payload of it is compared by.
local function forget(object, source)
  local stamps = base .. 'stamps:' .. object
  local header, stamp = redis.call('HGET', base .. 'headers:' .. object, source), redis.call('HGET', stamps, source)
  if not header then return end
  local further = redis.call('HGET', base .. 'further:' .. object, source) or ''
  redis.call('HSET', base .. 'seen:' .. object, source, redis.sha1hex(content(header, stamp, further)))
  redis.call('HDEL', stamps, source)
  drop_images(object, source)
end

-- Takes out of `left` (source -> how many epochs are newer) what a model has not seen and would look at.
local function seen_by(model, object, left)
  local tokens, most = base .. 'tokens' .. model[1] .. ':' .. object, model[3]
  local known = redis.call('HGET', tokens, 'model') == model[2]
  for source, newer in pairs(left) do
    if newer < most and not (known and redis.call('HEXISTS', tokens, source) == 1) then left[source] = nil end
  end
end

local function forget_seen(object, sources)
  if #looking == 0 then return end
  local pixels, left = {}, {}
  for _, source in ipairs(redis.call('HKEYS', base .. 'stamps:' .. object)) do pixels[source] = true end
  for n, source in ipairs(sources) do
    if pixels[source] then left[source] = #sources - n end
  end
  for _, model in ipairs(looking) do seen_by(model, object, left) end
  for _, source in ipairs(sources) do
    if left[source] then forget(object, source) end
  end
end

local function drop_old(sources, tokens)
  local current = {model = true}
  -- any neighbours, not only today's groups: a full history slides by one epoch at a time, and its groups are the
  -- same ones again after as many epochs as a group has
  local oldest = span == 1 and math.max(1, #sources - most + 1) or 1
  for first = oldest, #sources - span + 1 do
    current[table.concat(sources, '', first, first + span - 1)] = true
  end
  for _, group in ipairs(redis.call('HKEYS', tokens)) do
    if not current[group] then redis.call('HDEL', tokens, group) end
  end
end

while i <= #ARGV do
  local object, version, revision, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local tokens, meta = base .. 'tokens' .. lane .. ':' .. object, redis.call('HMGET', base .. 'meta:' .. object, 'rev', 'data')
  -- a token of before a stored stamp was replaced or dropped is another stamp's
  if meta[1] and revision >= (tonumber(meta[2]) or 0) then
    if redis.call('HGET', tokens, 'model') ~= version then
      redis.call('DEL', tokens)
      redis.call('HSET', tokens, 'model', version)
    end
    for n = i + 4, i + 2 + 2 * count, 2 do
      redis.call('HSET', tokens, ARGV[n], ARGV[n + 1])
    end
    local sources = redis.call('ZRANGE', base .. 'order:' .. object, 0, -1)
    drop_old(sources, tokens)
    forget_seen(object, sources)
  end
  i = i + 4 + 2 * count
end
