-- Keeps a model's classification of an object as the latest one, and its line in the history (needs `lane`, `longest`).
local function keep_classification(object, revision, latest, line)
  redis.call('SET', base .. 'latest' .. lane .. ':' .. object, latest)
  redis.call('RPUSH', base .. 'history' .. lane .. ':' .. object, line)
  redis.call('LTRIM', base .. 'history' .. lane .. ':' .. object, -longest, -1)
  redis.call('HSET', base .. 'meta:' .. object, 'ans' .. lane, revision)
end
