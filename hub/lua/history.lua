-- Read where a `stream` channel stands and what it keeps, in one step. generation.lua goes before.
--
-- KEYS[1]  the store's generation record
-- KEYS[2]  the channel's meta
-- KEYS[3]  the channel's publications
-- ARGV[1]  a nonce of this call's own, for an epoch
-- ARGV[2]  history_meta_ttl in ms
-- ARGV[3]  at most so many; 0 for the position only, -1 for all
-- ARGV[4]  'XRANGE', oldest first, or 'XREVRANGE'
-- ARGV[5]  where to begin, as that command has it: '-', '+' or '(17-0'
-- ARGV[6]  bytes of bodies after which no more are read, but one at least; 0 for no bound
--
-- Returns {top offset as text, epoch, entries}: entries as XRANGE gives them, [['17-0', ['b', body]], …].
local top, epoch = touch(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if ARGV[3] == '0' then
    return {top, epoch, {}}
end
local last = ARGV[4] == 'XRANGE' and '+' or '-'
local most_bytes = tonumber(ARGV[6])
if most_bytes > 0 then
    local entries, size, from = {}, 0, ARGV[5]
    local left = ARGV[3] == '-1' and math.huge or tonumber(ARGV[3])
    while left > 0 do
        local count = math.min(left, 16)
        local page = redis.call(ARGV[4], KEYS[3], from, last, 'COUNT', count)
        for _, entry in ipairs(page) do
            size = size + #entry[2][2]
            if size > most_bytes and #entries > 0 then
                return {top, epoch, entries}
            end
            entries[#entries + 1] = entry
            from = '(' .. entry[1]
        end
        left = #page == count and left - count or 0
    end
    return {top, epoch, entries}
end
if ARGV[3] == '-1' then
    return {top, epoch, redis.call(ARGV[4], KEYS[3], ARGV[5], last)}
end
return {top, epoch, redis.call(ARGV[4], KEYS[3], ARGV[5], last, 'COUNT', ARGV[3])}
