-- Marks offsets of one partition in one of its books, and counts the reason of each offset that was not marked before.
-- KEYS[1]: the partition's prefix
-- ARGV: the book (consumed, skipped or rejected), then offset, reason of each ('' where the book has no reasons)
local partition, book = KEYS[1], ARGV[1]
for i = 2, #ARGV, 2 do
  local offset = tonumber(ARGV[i])
  local key = string.format('%s%s:%d', partition, book, math.floor(offset / 1048576))
  if redis.call('SETBIT', key, offset % 1048576, 1) == 0 and ARGV[i + 1] ~= '' then
    redis.call('HINCRBY', partition .. 'reasons:' .. book, ARGV[i + 1], 1)
  end
end
return 0
