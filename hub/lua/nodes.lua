-- Keep or read the list of live nodes; those whose lease has ended are taken out first, whoever asks.
--
-- KEYS[1]   the leases: a sorted set of uids by the millisecond at which each ends
-- KEYS[2]   what the nodes say of themselves: a hash by uid
-- ARGV[1]   uid of the node that renews its lease, or '' to read
-- ARGV[2]   renewing: length of the lease in milliseconds
-- ARGV[3]   renewing: what the node says of itself
-- ARGV[4]   renewing: both keys vanish when nobody has renewed for so many milliseconds
--
-- Returns the descriptions of all live nodes when reading, 1 after renewing.
-- The clock is that of Redis, so that machines whose clocks differ agree. Both keys share a hash tag.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, uid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))) do
    redis.call('ZREM', KEYS[1], uid)
    redis.call('HDEL', KEYS[2], uid)
end
if ARGV[1] == '' then
    return redis.call('HVALS', KEYS[2])
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
