#!lua
-- Writes the counts of a segment and the offsets they cover, unless somebody else has done so since they were counted.
-- KEYS[1]: the partition's prefix. ARGV: segment, what stood there when it was counted ("" for nothing), what shall.
-- Returns 1, or 0 where something else stands there by now.
local folded = KEYS[1] .. 'folded'
if (redis.call('HGET', folded, ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', folded, ARGV[1], ARGV[3])
return 1
