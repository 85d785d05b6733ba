#!lua flags=no-writes
-- How long the object has been waiting that became ready first, by the server's own clock; changes nothing.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix. Returns milliseconds, or -1 if nothing is ready.
local base, lane = KEYS[1], ARGV[1]
-- include shared/now.lua
local longest = -1
-- an object in flight whose lease is over waits for its next claim
for _, queue in ipairs({'fresh', 'due', 'inflight'}) do
  local first = redis.call('ZRANGE', base .. queue .. lane, 0, 0, 'WITHSCORES')
  if first[2] then longest = math.max(longest, now - tonumber(first[2])) end
end
return longest
