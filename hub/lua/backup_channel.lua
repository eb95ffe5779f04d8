-- Read one `stream` channel for a backup: where it stands, and its publications up to about so many bytes, in one step.
--
-- KEYS[1]  the channel's meta
-- KEYS[2]  the channel's stream
-- ARGV[1]  id of the last publication read before, which comes again as the first one here unless it is gone; '-' to begin
-- ARGV[2]  bytes of bodies after which no more are read
--
-- Returns {meta as field, value, …; its PTTL; the stream's PTTL; entries; 1 where there are more}. Nothing is written.
local entries, size, from, more = {}, 0, ARGV[1], 0
repeat
    local page = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 16)
    for _, entry in ipairs(page) do
        entries[#entries + 1] = entry
        size = size + #(entry[2][2] or '')
        from = '(' .. entry[1]
    end
    more = #page == 16 and 1 or 0
until more == 0 or size >= tonumber(ARGV[2])
return {redis.call('HGETALL', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2]), entries, more}
