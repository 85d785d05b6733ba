#!lua flags=allow-oom
-- Keeps the classification of a joined history with the object that it is published under, where another one of the
-- group was claimed. KEYS[1]: the shard's prefix. ARGV: model's suffix, longest history, then four for each: object,
-- revision, the classification, its line in the history. What is older than what is kept changes nothing.
local base, lane, longest = KEYS[1], ARGV[1], tonumber(ARGV[2])
-- include shared/keep_classification.lua

for i = 3, #ARGV, 4 do
  local object, revision = ARGV[i], ARGV[i + 1]
  local meta = redis.call('HMGET', base .. 'meta:' .. object, 'rev', 'ans' .. lane)
  if meta[1] and tonumber(revision) > (tonumber(meta[2]) or 0) then
    keep_classification(object, revision, ARGV[i + 2], ARGV[i + 3])
  end
end
