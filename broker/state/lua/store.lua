#!lua
-- Brings the deliveries of one shard into their sequences, the queue and the books: all of it, or nothing.
-- KEYS[1]: the shard's prefix (keys.py). ARGV: debounce (ms), longest sequence, then seven for each delivery:
-- "partition:segment", bit, object, source id (8 bytes), MJD, header, stamp.
-- Returns one outcome for each delivery: 1 stored, 2 duplicate, 3 skipped (older than the window).
local base, debounce, longest = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local STORED, DUPLICATE, SKIPPED = 1, 2, 3
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What a delivery is compared by: everything but its Kafka and ingest times (bytes 37 to 52 of the header).
local function content(header, stamp)
  return string.sub(header, 1, 36) .. string.sub(header, 53) .. stamp
end

-- Two payloads of one source: the later MJD stays, then the larger digest, so that the order of arrival cannot matter.
-- (Lua compares strings by the server's locale, hence a number. A source's place in the order only ever moves up;
-- otherwise what was trimmed meanwhile would depend on the order of arrival.)
local function replaces(object, source, mjd, old_mjd, header, stamp)
  if mjd ~= old_mjd then return mjd > old_mjd end
  local old_header = redis.call('HGET', base .. 'headers:' .. object, source)
  local old_stamp = redis.call('HGET', base .. 'stamps:' .. object, source)
  if not old_header or not old_stamp then return true end
  local new, old = content(header, stamp), content(old_header, old_stamp)
  if new == old then return false end
  return tonumber(string.sub(redis.sha1hex(new), 1, 13), 16) > tonumber(string.sub(redis.sha1hex(old), 1, 13), 16)
end

-- Drops the oldest beyond the window; tells whether `source` was among them and whether others were.
local function trim(object, source)
  local order, own, others = base .. 'order:' .. object, false, false
  local excess = redis.call('ZCARD', order) - longest
  if excess <= 0 then return own, others end
  for _, oldest in ipairs(redis.call('ZRANGE', order, 0, excess - 1)) do
    redis.call('ZREM', order, oldest)
    if oldest == source then
      own = true
    else
      redis.call('HDEL', base .. 'headers:' .. object, oldest)
      redis.call('HDEL', base .. 'stamps:' .. object, oldest)
      others = true
    end
  end
  return own, others
end

-- The suffixes of the models that are known; one empty suffix while there is none.
local function lanes()
  local names = redis.call('SMEMBERS', base .. 'models')
  if #names == 0 then return {''} end
  for n, name in ipairs(names) do names[n] = '.' .. name end
  return names
end

local every = lanes()

local function queue_for(lane, object, meta)
  -- an object in flight is queued again when it is settled
  if redis.call('ZSCORE', base .. 'inflight' .. lane, object) then return end
  local queue = redis.call('HEXISTS', meta, 'ans' .. lane) == 1 and 'due' or 'fresh'
  -- NX: the first stamp sets the ready time, later ones do not postpone it
  if redis.call('ZADD', base .. queue .. lane, 'NX', now + debounce, object) == 1 then
    redis.call('SREM', base .. 'classified' .. lane, object)
    redis.call('SREM', base .. 'declined' .. lane, object)
    redis.call('ZREM', base .. 'unasked' .. lane, object)
  end
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

local function store(object, source, mjd, header, stamp)
  local order = base .. 'order:' .. object
  local old = redis.call('ZSCORE', order, source)
  if old and not replaces(object, source, tonumber(mjd), tonumber(old), header, stamp) then return DUPLICATE end
  redis.call('ZADD', order, mjd, source)
  local own, others = trim(object, source)
  if not own then
    redis.call('HSET', base .. 'headers:' .. object, source, header)
    redis.call('HSET', base .. 'stamps:' .. object, source, stamp)
  end
  if own and not others then return SKIPPED end
  local revision = changed(object)
  if old then  -- tokens know their epochs by their source ids only
    for _, lane in ipairs(every) do redis.call('DEL', base .. 'tokens' .. lane .. ':' .. object) end
    redis.call('HSET', base .. 'meta:' .. object, 'data', revision)
  end
  return own and SKIPPED or STORED
end

-- A place in Kafka whose outcome is known was delivered again: nothing changes. Looked up for all before any is set,
-- because one message may hold several records.
local known = {}
for i = 3, #ARGV, 7 do
  local place = ARGV[i] .. '/' .. ARGV[i + 1]
  if known[place] == nil then
    known[place] = (redis.call('GETBIT', base .. 'stored:' .. ARGV[i], ARGV[i + 1]) == 1 and STORED)
      or (redis.call('GETBIT', base .. 'duplicate:' .. ARGV[i], ARGV[i + 1]) == 1 and DUPLICATE)
  end
end

local outcomes, bitmaps = {}, {}
for i = 3, #ARGV, 7 do
  local segment, bit = ARGV[i], ARGV[i + 1]
  local outcome = known[segment .. '/' .. bit]
  if not outcome then
    outcome = store(ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6])
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
