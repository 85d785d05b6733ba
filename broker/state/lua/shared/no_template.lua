-- Takes the place of a template's digest for an epoch without a template.
local NO_TEMPLATE = string.rep('\0', 8)
