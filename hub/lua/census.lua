-- Tell how many connections a worker has of some addresses and users, and hear how many all workers have; keep its
-- lease, and take out what a worker has left behind whose lease has ended.
--
-- KEYS[1]  the leases: a sorted set of uids by the millisecond at which each ends
-- KEYS[2]  connections on all workers: a hash by name
-- KEYS[3]  those of this worker: a hash by name
-- ARGV[1]  uid of the worker
-- ARGV[2]  length of a lease in ms
-- ARGV[3]  all keys vanish when nobody has renewed for so many ms
-- ARGV[4]  what KEYS[3] begins with, up to the uid
-- ARGV[5]  so many names of a dead worker are taken out in one call
-- ARGV[6…] name and number, in turn; 0: it has none
--
-- Returns 1 where this worker's lease and own hash were still there, 0 where it has to tell everything again, and then
-- the totals in their order. A call that is sent twice counts once: what is added is what differs from the worker's own hash.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function add(name, number)
    if number ~= 0 and redis.call('HINCRBY', KEYS[2], name, number) <= 0 then
        redis.call('HDEL', KEYS[2], name)
    end
end
for _, uid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1)) do
    if uid ~= ARGV[1] then
        local key = ARGV[4] .. uid
        local found = redis.call('HSCAN', key, 0, 'COUNT', ARGV[5])[2]
        for i = 1, #found, 2 do
            add(found[i], -found[i + 1])
            redis.call('HDEL', key, found[i])
        end
        if redis.call('EXISTS', key) == 0 then
            redis.call('ZREM', KEYS[1], uid)
        end
    end
end
local ends = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
-- Behind the end of its lease others may have taken out a part of it.
local answer = {ends > now and redis.call('EXISTS', KEYS[3]) or 0}
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
-- A field that is no name: a worker without connections has a hash, too, and so can tell that it was lost.
redis.call('HSET', KEYS[3], '', 0)
for i = 6, #ARGV, 2 do
    local name, number = ARGV[i], tonumber(ARGV[i + 1])
    add(name, number - (redis.call('HGET', KEYS[3], name) or 0))
    if number > 0 then
        redis.call('HSET', KEYS[3], name, number)
    else
        redis.call('HDEL', KEYS[3], name)
    end
    answer[#answer + 1] = tonumber(redis.call('HGET', KEYS[2], name) or 0)
end
for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], ARGV[3])
end
return answer
