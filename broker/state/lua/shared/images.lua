-- include shared/no_template.lua

-- What a delivery is compared by: everything but its Kafka and ingest times (bytes 37 to 52 of the header), and but
-- points and context, which are merged apart.
local function content(header, stamp, further)
  return string.sub(header, 1, 36) .. string.sub(header, 53) .. stamp .. further
end

-- Drops the further images of an epoch, and the template that no other epoch uses.
local function drop_images(object, source)
  local further, templates = base .. 'further:' .. object, base .. 'templates:' .. object
  local old = redis.call('HGET', further, source)
  if not old then return end
  redis.call('HDEL', further, source)
  local digest = string.sub(old, 1, 8)
  if digest == NO_TEMPLATE then return end
  local uses = tonumber(redis.call('HGET', templates, digest .. 'n') or 1)
  if uses > 2 then
    redis.call('HSET', templates, digest .. 'n', uses - 1)
  elseif uses == 2 then
    redis.call('HDEL', templates, digest .. 'n')
  else
    redis.call('HDEL', templates, digest)
  end
end
