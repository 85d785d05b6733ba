-- Stands where the digest of a template would, for an epoch without one.
local NO_TEMPLATE = string.rep('\0', 8)
