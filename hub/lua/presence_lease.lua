-- Renew a worker's lease on its clients' presence, and hand it those workers whose lease has ended.
--
-- KEYS[1]  the leases: a sorted set of uids by the millisecond at which each ends; "-UID" is one that is being cleared up
-- KEYS[2]  the channels in which this worker has clients, or leaves that are held back
-- ARGV[1]  uid of the worker
-- ARGV[2]  length of the lease in ms
-- ARGV[3]  both keys vanish when nobody has renewed for so many ms
--
-- Returns this Redis process' id, whether the lease was still there (0 or 1), and the uids to clear up. Who clears up has
-- one lease's time for it; if it is not done then, perhaps because that one has died too, the next one is asked.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = string.format('%.0f', now + ARGV[2])
local held = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
redis.call('ZADD', KEYS[1], ends, ARGV[1])
local answer = {string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or '', held}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))) do
    local uid = string.gsub(member, '^%-', '')
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZADD', KEYS[1], ends, '-' .. uid)
    answer[#answer + 1] = uid
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return answer
