-- Note or strike off what is revoked or blocked, and tell all workers, in one step.
--
-- KEYS[1]  when each entry ends: a sorted set of entries by seconds since 1970, +inf for never
-- KEYS[2]  the entries: a hash; revocation.py has their values
-- ARGV[1]  the entry
-- ARGV[2]  its value; '' strikes it off
-- ARGV[3]  when it ends, as above
-- ARGV[4]  so many entries at most
-- ARGV[5]  the Redis channel that all workers hear, ARGV[6] what they are told
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
    redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
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
