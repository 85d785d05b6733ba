#!lua flags=no-writes
-- Reads histories of one shard for one model, each with its revision.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, version of what it keeps, epochs that one kept thing (token)
-- belongs to (0: none), "stamps" or "" without any, then the objects.
-- Returns for each object {revision, headers, stamps of the epochs without token, {span, token, …}}, headers and
-- stamps joined in the order of the history; or nothing where a part of the object is missing.
local base, lane, version, span, wants_stamps = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == 'stamps'

local function tokens_of(object, sources)
  local tokens = base .. 'tokens' .. lane .. ':' .. object
  if span == 0 or #sources < span or redis.call('HGET', tokens, 'model') ~= version then return {} end
  local fields = {}
  for first = 1, #sources - span + 1, span do
    fields[#fields + 1] = table.concat(sources, '', first, first + span - 1)
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
    local at = span > 0 and math.floor((n - 1) / span) or -1
    local token = tokens[at + 1]
    if not token then
      wanted[#wanted + 1] = source
    elseif (n - 1) % span == 0 then
      cached[#cached + 1] = at
      cached[#cached + 1] = token
    end
  end
  local stamps = wants_stamps and #wanted > 0 and redis.call('HMGET', base .. 'stamps:' .. object, unpack(wanted)) or {}
  for n = 1, wants_stamps and #wanted or 0 do
    if not stamps[n] then return false end
  end
  return {revision, table.concat(headers), table.concat(stamps), cached}
end

local found = {}
for i = 5, #ARGV do
  found[i - 4] = fetch(ARGV[i])
end
return found
