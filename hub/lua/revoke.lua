-- Note or strike off what is revoked or blocked, and tell all workers, in one step.
--
-- KEYS[1]  when each entry ends: a sorted set of entries by seconds since 1970, +inf for never
-- KEYS[2]  the entries: a hash; revocation.py has their values
-- ARGV[1]  the entry
-- ARGV[2]  its value; '' strikes it off
-- ARGV[3]  when it ends, as above
-- ARGV[4]  so many entries at most
-- ARGV[5]  the Redis channel that all workers hear, ARGV[6] what they are told
-- ARGV[7]  'keep': what stands there already and is stronger, a later time or a later end, stays
--
-- Returns how many heard it, -1 where there is no room. Both keys share a hash tag; they vanish with the last entry that
-- ends. The clock is that of Redis.
local now = redis.call('TIME')[1]
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', KEYS[1], entry)
    redis.call('HDEL', KEYS[2], entry)
end
if ARGV[2] == '' then
    redis.call('ZREM', KEYS[1], ARGV[1])
    redis.call('HDEL', KEYS[2], ARGV[1])
else
    if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then
        return -1
    end
    local value, ends = ARGV[2], ARGV[3]
    if ARGV[7] == 'keep' then
        -- As text, because cjson would write times with 14 digits. A quote in a name is escaped, so this is the end of
        -- the value; what does not look so was not written here.
        local tail = ',"expires_at":([^,]+),"before":([^,]+),"gone":false}$'
        local _, _, old_end, old_before = string.find(redis.call('HGET', KEYS[2], ARGV[1]) or '', tail)
        local at, _, new_end, new_before = string.find(value, tail)
        if old_end and tonumber(old_before) and (old_end == 'null' or tonumber(old_end)) then
            local before = tonumber(old_before) > tonumber(new_before) and old_before or new_before
            local longer = old_end == 'null' or (new_end ~= 'null' and tonumber(old_end) > tonumber(new_end))
            local last = longer and old_end or new_end
            ends = last == 'null' and 'inf' or last
            value = string.sub(value, 1, at - 1)
            value = value .. ',"expires_at":' .. last .. ',"before":' .. before .. ',"gone":false}'
        end
    end
    redis.call('ZADD', KEYS[1], ends, ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[1], value)
    local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
    for _, key in ipairs(KEYS) do
        if last == 'inf' then
            redis.call('PERSIST', key)
        else
            redis.call('EXPIREAT', key, string.format('%.0f', math.ceil(last) + 1))
        end
    end
end
return redis.call('PUBLISH', ARGV[5], ARGV[6])
