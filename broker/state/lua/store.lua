#!lua
-- Brings the deliveries of one shard into their sequences, the queue and the books: all of it, or nothing.
-- KEYS[1]: the shard's prefix (keys.py). ARGV: debounce (ms), quiet time (ms, at most the debounce), longest sequence, most
-- points, then twelve for each delivery: "partition:segment", bit, object, source id (8 bytes), MJD, header, stamp,
-- difference, digest of the template (8 bytes), template, points, context; of the last five any may be empty.
-- Returns one outcome for each delivery: 1 stored, 2 duplicate, 3 skipped (older than the window).
local base, debounce, quiet = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local longest, most_points = tonumber(ARGV[3]), tonumber(ARGV[4])
local FIRST, WIDTH, POINT = 5, 12, 16  -- the first delivery's place, words of each, bytes of a point
local STORED, DUPLICATE, SKIPPED = 1, 2, 3
-- include shared/now.lua
-- include shared/lanes.lua
-- include shared/images.lua

-- Of a digest. Lua compares strings by the server's locale, hence a number.
local function rank(digest)
  return tonumber(string.sub(digest, 1, 13), 16)
end

-- The digest of the template and the difference, as they are kept; empty where there is neither.
local function further_of(d)
  if d.difference == '' and d.digest == '' then return '' end
  return (d.digest == '' and NO_TEMPLATE or d.digest) .. d.difference
end

-- The stored payload of a source; of one whose pixels are not kept any more (tokens.lua), nothing and its digest.
local function stored(object, source)
  local header = redis.call('HGET', base .. 'headers:' .. object, source)
  local stamp = redis.call('HGET', base .. 'stamps:' .. object, source)
  if not header then return nil, nil end
  if not stamp then return nil, redis.call('HGET', base .. 'seen:' .. object, source) end
  return content(header, stamp, redis.call('HGET', base .. 'further:' .. object, source) or ''), nil
end

-- Two payloads of one source: the later MJD stays, then the larger digest, so that the order of arrival cannot matter.
-- (A source's place in the order only ever moves up; otherwise what was trimmed meanwhile would depend on the order of
-- arrival.) Returns whether the new one replaces the old, and whether both are the same.
local function replaces(d, old_mjd)
  local mjd = tonumber(d.mjd)
  if mjd ~= old_mjd then return mjd > old_mjd, false end
  local new, old, old_digest = content(d.header, d.stamp, further_of(d)), stored(d.object, d.source)
  if new == old then return false, true end
  old_digest = old and redis.sha1hex(old) or old_digest
  if not old_digest then return true, false end
  local digest = redis.sha1hex(new)
  return rank(digest) > rank(old_digest), digest == old_digest
end

local function keep_images(d)
  drop_images(d.object, d.source)  -- of the payload that this one replaces
  local further, templates = further_of(d), base .. 'templates:' .. d.object
  if further == '' then return end
  redis.call('HSET', base .. 'further:' .. d.object, d.source, further)
  if d.digest == '' then return end
  if redis.call('HSETNX', templates, d.digest, d.template) == 0 then
    redis.call('HSET', templates, d.digest .. 'n', tonumber(redis.call('HGET', templates, d.digest .. 'n') or 1) + 1)
  end
end

-- Of two values of one point that with the smaller error stays, then that with the larger flux.
local function better(new, old)
  local flux, error = struct.unpack('<ff', string.sub(new, 9))
  local old_flux, old_error = struct.unpack('<ff', string.sub(old, 9))
  if error ~= old_error then return error < old_error end
  return flux > old_flux
end

-- Both in the order of their keys, each key once.
local function merged(old, new)
  local points, i, j = {}, 1, 1
  while i < #old or j < #new do
    local a, b = string.sub(old, i, i + POINT - 1), string.sub(new, j, j + POINT - 1)
    local key_a, key_b = a ~= '' and struct.unpack('<d', a), b ~= '' and struct.unpack('<d', b)
    if key_a and (not key_b or key_a <= key_b) then i = i + POINT end
    if key_b and (not key_a or key_b <= key_a) then j = j + POINT end
    if key_a and key_b and key_a == key_b then
      points[#points + 1] = better(b, a) and b or a
    else
      points[#points + 1] = key_a and (not key_b or key_a < key_b) and a or b
    end
  end
  return table.concat(points, '', math.max(1, #points - most_points + 1))
end

-- Merges a packet's points with the object's; tells whether they changed.
local function keep_points(d)
  if d.points == '' then return false end
  local key = base .. 'points:' .. d.object
  local old = redis.call('GET', key) or ''
  local new = old == d.points and old or merged(old, d.points)
  if new == old then return false end
  redis.call('SET', key, new)
  return true
end

-- Keeps the context of the newest epoch; tells whether it changed. `same`: its payload is there already, so that of two
-- contexts that with the larger digest stays, and one above none.
local function keep_context(d, same)
  local key = base .. 'context:' .. d.object
  if redis.call('ZRANGE', base .. 'order:' .. d.object, -1, -1)[1] ~= d.source then return false end
  local old, new = redis.call('GET', key), d.source .. d.context
  if old == new or (not old and d.context == '') then return false end
  if same and old and string.sub(old, 1, 8) == d.source then
    if d.context == '' or rank(redis.sha1hex(new)) < rank(redis.sha1hex(old)) then return false end
  end
  if d.context == '' then redis.call('DEL', key) else redis.call('SET', key, new) end
  return true
end

local every = lanes()

local function belongs(source, group)
  for at = 1, #group, #source do
    if string.sub(group, at, at + #source - 1) == source then return true end
  end
  return false
end

-- Drops what models keep of an epoch: tokens know their epochs by their source ids only.
local function drop_tokens(object, source)
  for _, lane in ipairs(every) do
    local tokens = base .. 'tokens' .. lane .. ':' .. object
    if redis.call('HDEL', tokens, source) == 0 then  -- otherwise each belongs to one epoch
      for _, group in ipairs(redis.call('HKEYS', tokens)) do
        if belongs(source, group) then redis.call('HDEL', tokens, group) end
      end
    end
  end
end

-- Drops the oldest beyond the window; tells whether `source` was among them and whether others were.
local function trim(object, source)
  local order, own, others = base .. 'order:' .. object, false, false
  local excess = redis.call('ZCARD', order) - longest
  if excess <= 0 then return own, others end
  for _, oldest in ipairs(redis.call('ZRANGE', order, 0, excess - 1)) do
    redis.call('ZREM', order, oldest)
    for _, part in ipairs({'headers:', 'stamps:', 'seen:'}) do redis.call('HDEL', base .. part .. object, oldest) end
    drop_images(object, oldest)
    drop_tokens(object, oldest)  -- it may come back with a later MJD and other pixels
    if oldest == source then own = true else others = true end
  end
  return own, others
end

local function queue_for(lane, object, meta)
  -- an object in flight is queued again when it is settled
  if redis.call('ZSCORE', base .. 'inflight' .. lane, object) then return end
  local queue, other = 'fresh', 'due'
  if redis.call('HEXISTS', meta, 'ans' .. lane) == 1 then queue, other = other, queue end
  -- an object waits in one place only: those that were there before a model are due for it though it never saw them
  if redis.call('ZSCORE', base .. other .. lane, object) then queue = other end
  queue = base .. queue .. lane
  -- NX: the first stamp sets the latest time from which the object is ready; later ones do not postpone that
  if redis.call('ZADD', queue, 'NX', now + quiet, object) == 1 then
    if quiet < debounce then redis.call('HSET', meta, 'until' .. lane, now + debounce) end
    redis.call('SREM', base .. 'classified' .. lane, object)
    redis.call('SREM', base .. 'declined' .. lane, object)
    redis.call('ZREM', base .. 'unasked' .. lane, object)
    return
  end
  local ready = tonumber(redis.call('ZSCORE', queue, object))
  local latest = ready > now and tonumber(redis.call('HGET', meta, 'until' .. lane))
  if latest and latest >= ready then redis.call('ZADD', queue, 'XX', math.min(latest, now + quiet), object) end
end

-- A revision is Unix milliseconds, but always above the one before: it goes on rising after the object expired or
-- the server forgot everything, so that a reader who drops older revisions drops no new answer.
local function changed(object)
  local meta = base .. 'meta:' .. object
  local revision = math.max((tonumber(redis.call('HGET', meta, 'rev')) or 0) + 1, now)
  revision = string.format('%.0f', revision)
  redis.call('HSET', meta, 'rev', revision)
  redis.call('ZADD', base .. 'touched', now, object)
  for _, lane in ipairs(every) do queue_for(lane, object, meta) end
  return revision
end

-- Puts a payload in its place; tells what became of it, whether the sequence changed, and whether anything was dropped.
local function place(d, replaced)
  local object = d.object
  redis.call('ZADD', base .. 'order:' .. object, d.mjd, d.source)
  local own, others = trim(object, d.source)
  if own then return SKIPPED, others or replaced, others or replaced end
  redis.call('HSET', base .. 'headers:' .. object, d.source, d.header)
  redis.call('HSET', base .. 'stamps:' .. object, d.source, d.stamp)
  redis.call('HDEL', base .. 'seen:' .. object, d.source)
  keep_images(d)
  if replaced then drop_tokens(object, d.source) end
  return STORED, true, others or replaced
end

local function store(d)
  local old = redis.call('ZSCORE', base .. 'order:' .. d.object, d.source)
  local outcome, new, same = DUPLICATE, true, false
  if old then new, same = replaces(d, tonumber(old)) end
  local changes, dropped = false, false
  if new then outcome, changes, dropped = place(d, old ~= false) end
  -- whatever became of the stamps, so that the order of arrival cannot matter
  local points = keep_points(d)
  local context = (new or same) and keep_context(d, same)
  if not (changes or points or context) then return outcome end
  local revision = changed(d.object)
  -- a worker that has read what was dropped is not to bring back the tokens of it
  if dropped then redis.call('HSET', base .. 'meta:' .. d.object, 'data', revision) end
  return outcome
end

local function delivery(i)
  return {
    object = ARGV[i + 2], source = ARGV[i + 3], mjd = ARGV[i + 4], header = ARGV[i + 5], stamp = ARGV[i + 6],
    difference = ARGV[i + 7], digest = ARGV[i + 8], template = ARGV[i + 9], points = ARGV[i + 10], context = ARGV[i + 11],
  }
end

-- A place in Kafka whose outcome is known was delivered again: nothing changes. Looked up for all before any is set,
-- because one message may hold several records.
local known = {}
for i = FIRST, #ARGV, WIDTH do
  local place = ARGV[i] .. '/' .. ARGV[i + 1]
  if known[place] == nil then
    known[place] = (redis.call('GETBIT', base .. 'stored:' .. ARGV[i], ARGV[i + 1]) == 1 and STORED)
      or (redis.call('GETBIT', base .. 'duplicate:' .. ARGV[i], ARGV[i + 1]) == 1 and DUPLICATE)
  end
end

local outcomes, bitmaps = {}, {}
for i = FIRST, #ARGV, WIDTH do
  local segment, bit = ARGV[i], ARGV[i + 1]
  local outcome = known[segment .. '/' .. bit]
  if not outcome then
    outcome = store(delivery(i))
    if outcome ~= SKIPPED then
      local bitmap = base .. (outcome == STORED and 'stored:' or 'duplicate:') .. segment
      redis.call('SETBIT', bitmap, bit, 1)
      bitmaps[bitmap] = segment
    end
  end
  outcomes[#outcomes + 1] = outcome
end
for bitmap, segment in pairs(bitmaps) do
  redis.call('PERSIST', bitmap)  -- a folded segment that gets new marks stays until it is folded again
  redis.call('SADD', base .. 'segments', segment)
end
return outcomes
