#!lua flags=no-writes
-- Reads histories of one shard for one model, each with its revision.
-- KEYS[1]: the shard's prefix. ARGV: model's suffix, version of what it keeps, epochs that one kept thing (token)
-- belongs to (0: none), what else it needs ("s" stamps, "f" further images, "p" points, "c" context, in one word), then
-- the objects.
-- Returns for each object {revision, headers, stamps of the epochs without token, {span, token, …}, {further images of
-- the epochs without token}, {digest, template, …}, points, context, {epochs whose stamps are not kept any more}},
-- headers and stamps joined in the order of the history; or nothing where a part of the object is missing.
local base, lane, version, span, wants = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
-- include shared/no_template.lua

local function needs(letter)
  return string.find(wants, letter, 1, true) ~= nil
end

local wants_stamps, wants_further, wants_points, wants_context = needs('s'), needs('f'), needs('p'), needs('c')

local function tokens_of(object, sources)
  local tokens = base .. 'tokens' .. lane .. ':' .. object
  if span == 0 or #sources < span or redis.call('HGET', tokens, 'model') ~= version then return {} end
  local fields = {}
  for first = 1, #sources - span + 1, span do
    fields[#fields + 1] = table.concat(sources, '', first, first + span - 1)
  end
  return redis.call('HMGET', tokens, unpack(fields))
end

-- The stamps of epochs that are there, the sources of those, and which are not kept any more (redis.keep_pixels);
-- nothing where one is missing otherwise.
local function stamps_of(object, wanted, places)
  local stamps, there, gone = {}, {}, {}
  if not wants_stamps or #wanted == 0 then return stamps, wanted, gone end
  local found = redis.call('HMGET', base .. 'stamps:' .. object, unpack(wanted))
  for n, source in ipairs(wanted) do
    if found[n] then
      stamps[#stamps + 1], there[#there + 1] = found[n], source
    elseif redis.call('HEXISTS', base .. 'seen:' .. object, source) == 1 then
      gone[#gone + 1] = places[n]
    else
      return nil
    end
  end
  return stamps, there, gone
end

-- The further images of epochs, and each template once; nothing where one is missing.
local function further_images(object, sources)
  local further, templates, known = {}, {}, {}
  if not wants_further or #sources == 0 then return further, templates end
  local found = redis.call('HMGET', base .. 'further:' .. object, unpack(sources))
  for n = 1, #sources do
    local digest = found[n] and string.sub(found[n], 1, 8) or NO_TEMPLATE
    further[n] = found[n] or ''
    if digest ~= NO_TEMPLATE and not known[digest] then
      local template = redis.call('HGET', base .. 'templates:' .. object, digest)
      if not template then return nil end
      known[digest] = true
      templates[#templates + 1] = digest
      templates[#templates + 1] = template
    end
  end
  return further, templates
end

-- The context, if it is the newest epoch's.
local function context_of(object, newest)
  local context = wants_context and redis.call('GET', base .. 'context:' .. object)
  return context and string.sub(context, 1, 8) == newest and string.sub(context, 9) or ''
end

local function fetch(object)
  local revision = redis.call('HGET', base .. 'meta:' .. object, 'rev')
  local sources = redis.call('ZRANGE', base .. 'order:' .. object, 0, -1)
  if not revision or #sources == 0 then return false end
  local headers = redis.call('HMGET', base .. 'headers:' .. object, unpack(sources))
  local tokens, cached, wanted, places = tokens_of(object, sources), {}, {}, {}
  for n, source in ipairs(sources) do
    if not headers[n] then return false end
    local at = span > 0 and math.floor((n - 1) / span) or -1
    local token = tokens[at + 1]
    if not token then
      wanted[#wanted + 1], places[#places + 1] = source, n - 1
    elseif (n - 1) % span == 0 then
      cached[#cached + 1] = at
      cached[#cached + 1] = token
    end
  end
  local stamps, there, gone = stamps_of(object, wanted, places)
  if not stamps then return false end
  local further, templates = further_images(object, there)
  if not further then return false end
  local points = wants_points and redis.call('GET', base .. 'points:' .. object) or ''
  local context = context_of(object, sources[#sources])
  return {revision, table.concat(headers), table.concat(stamps), cached, further, templates, points, context, gone}
end

local found = {}
for i = 5, #ARGV do
  found[i - 4] = fetch(ARGV[i])
end
return found
