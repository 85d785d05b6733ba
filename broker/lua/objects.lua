#!lua flags=no-writes
-- The objects of one shard in the books, all read at one moment.
-- KEYS[1]: the shard's prefix. Returns {touched, classified, declined, fresh, due, in flight, expired, lost}.
local base = KEYS[1]
local function count(command, name) return redis.call(command, base .. name) end
local function removed(name) return tonumber(redis.call('HGET', base .. 'counts', name)) or 0 end
return {
  count('ZCARD', 'touched'), count('SCARD', 'classified'), count('SCARD', 'declined'),
  count('ZCARD', 'fresh'), count('ZCARD', 'due'), count('ZCARD', 'inflight'), removed('expired'), removed('lost'),
}
