-- Read keys that belong together for a backup, in one step.
--
-- KEYS     the keys
-- ARGV[1]  a key that takes more bytes of memory is not read here but page by page
--
-- Returns for each key {type; its PTTL; 1 where it was too large; values: hash {field, value, …}, sorted set {member,
-- score, …}, stream {id, number of what follows, field, value, …}; of other types none}. Nothing is written.
local read = {
    hash = function(key) return redis.call('HGETALL', key) end,
    zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
    stream = function(key)
        local values = {}
        for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
            values[#values + 1] = entry[1]
            values[#values + 1] = tostring(#entry[2])
            for _, value in ipairs(entry[2]) do
                values[#values + 1] = value
            end
        end
        return values
    end,
}
local found = {}
for i, key in ipairs(KEYS) do
    local kind, large, values = redis.call('TYPE', key).ok, 0, {}
    if read[kind] then
        if redis.call('MEMORY', 'USAGE', key) > tonumber(ARGV[1]) then
            large = 1
        else
            values = read[kind](key)
        end
    end
    found[i] = {kind, redis.call('PTTL', key), large, values}
end
return found
