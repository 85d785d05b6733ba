#!lua flags=no-writes
-- Reads sequences of one shard, each with its revision.
-- KEYS[1]: the shard's prefix. ARGV: token model, then the objects.
-- Returns for each object {revision, headers, stamps of the groups without token, {group, token, …}}, headers and
-- stamps joined in the order of the sequence; or nothing where a part of the object is missing.
local base, model = KEYS[1], ARGV[1]
local GROUP = 3

local function tokens_of(object, sources)
  local tokens = base .. 'tokens:' .. object
  if #sources < GROUP or redis.call('HGET', tokens, 'model') ~= model then return {} end
  local fields = {}
  for first = 1, #sources - GROUP + 1, GROUP do
    fields[#fields + 1] = sources[first] .. sources[first + 1] .. sources[first + 2]
  end
  return redis.call('HMGET', tokens, unpack(fields))
end

local function fetch(object)
  local revision = redis.call('HGET', base .. 'meta:' .. object, 'rev')
  local sources = redis.call('ZRANGE', base .. 'order:' .. object, 0, -1)
  if not revision or #sources == 0 then return false end
  local headers = redis.call('HMGET', base .. 'headers:' .. object, unpack(sources))
  local tokens, cached, wanted = tokens_of(object, sources), {}, {}
  for n, source in ipairs(sources) do
    if not headers[n] then return false end
    local group = math.floor((n - 1) / GROUP)
    local token = tokens[group + 1]
    if not token then
      wanted[#wanted + 1] = source
    elseif (n - 1) % GROUP == 0 then
      cached[#cached + 1] = group
      cached[#cached + 1] = token
    end
  end
  local stamps = #wanted > 0 and redis.call('HMGET', base .. 'stamps:' .. object, unpack(wanted)) or {}
  for n = 1, #wanted do
    if not stamps[n] then return false end
  end
  return {revision, table.concat(headers), table.concat(stamps), cached}
end

local found = {}
for i = 2, #ARGV do
  found[i - 1] = fetch(ARGV[i])
end
return found
