#!lua
-- Records what the daemons of a survey have to agree on; what is recorded stays.
-- KEYS[1]: the survey's prefix. ARGV: name and value in turn. Returns all that is recorded, names and values in turn.
for i = 1, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1] .. 'agreed', ARGV[i], ARGV[i + 1])
  -- the releases before 0.2 know of the shards only, and of no other place than this
  if ARGV[i] == 'shards' then redis.call('SETNX', KEYS[1] .. 'layout', ARGV[i + 1]) end
end
return redis.call('HGETALL', KEYS[1] .. 'agreed')
