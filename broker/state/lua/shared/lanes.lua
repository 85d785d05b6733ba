-- The suffixes of the models that are known; one empty suffix while there is none.
local function lanes()
  local names = redis.call('SMEMBERS', base .. 'models')
  if #names == 0 then return {''} end
  for n, name in ipairs(names) do names[n] = '.' .. name end
  return names
end
