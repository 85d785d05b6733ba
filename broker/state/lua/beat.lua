#!lua
-- A daemon's sign of life. Refused where the intake would be refused: on a replica, on a full server, without replicas.
-- KEYS[1]: the survey's prefix. ARGV: how long a silent daemon is remembered (ms), its name, what it says (JSON).
local daemons, keep = KEYS[1] .. 'daemons', tonumber(ARGV[1])
-- include shared/now.lua
local found = redis.call('HGETALL', daemons)
for i = 1, #found, 2 do
  if now - tonumber(string.match(found[i + 1], '^%d+')) > keep then redis.call('HDEL', daemons, found[i]) end
end
redis.call('HSET', daemons, ARGV[2], string.format('%.0f ', now) .. ARGV[3])
