#!lua flags=no-writes
-- The objects of one shard in the books, all read at one moment.
-- KEYS[1]: the shard's prefix.
-- Returns {touched, expired, lost}, then {model, classified, declined, fresh, due, in flight, unasked} for each model.
local base = KEYS[1]
local function removed(name) return tonumber(redis.call('HGET', base .. 'counts', name)) or 0 end

local function counts(name, lane)
  local found = {name}
  for _, set in ipairs({'classified', 'declined'}) do found[#found + 1] = redis.call('SCARD', base .. set .. lane) end
  for _, set in ipairs({'fresh', 'due', 'inflight', 'unasked'}) do
    found[#found + 1] = redis.call('ZCARD', base .. set .. lane)
  end
  return found
end

local found = {{redis.call('ZCARD', base .. 'touched'), removed('expired'), removed('lost')}}
local names = redis.call('SMEMBERS', base .. 'models')
for _, name in ipairs(names) do found[#found + 1] = counts(name, '.' .. name) end
if #names == 0 then found[2] = counts('', '') end
return found
