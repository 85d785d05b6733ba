#!lua flags=no-writes
-- The daemons that have given a sign of life. KEYS[1]: the survey's prefix.
-- Returns for each its name, how long ago it was (ms, by the server's own clock), and what it said.
-- include shared/now.lua
local found, beats = redis.call('HGETALL', KEYS[1] .. 'daemons'), {}
for i = 1, #found, 2 do
  local when, said = string.match(found[i + 1], '^(%d+) (.*)$')
  beats[#beats + 1] = {found[i], now - tonumber(when), said}
end
return beats
