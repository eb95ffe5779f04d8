-- Renew a worker's lease on its manifest, and hand it the manifests of workers whose lease has ended.
--
-- KEYS[1]  the leases: a sorted set of uids by the millisecond at which each ends; "-UID CLAIMANT" is one of whose
--          clients the claimant is telling; "#since" the time from which on leases have been renewed without a pause;
--          "#born" when the set began
-- KEYS[2]  the worker's own manifest
-- ARGV[1]  uid of the worker
-- ARGV[2]  length of a lease in ms
-- ARGV[3]  both keys vanish when nobody has renewed for so many ms
-- ARGV[4]  when nobody at all has renewed for so many ms, Redis was away
-- ARGV[5]  what identified the store at the renewal before; '' at the worker's first under this uid
-- ARGV[6]  1: it takes over manifests
-- ARGV[7…] uids that it is telling of
--
-- Returns what identifies the store; 0 for another one than before, 1 where the lease is held, 2 where it had ended and
-- others tell of its clients; and the uids to tell of. After a pause everybody has a whole lease to come back: who was
-- cut off from Redis together with all others is not taken for dead.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = now + ARGV[2]
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local since = redis.call('ZSCORE', KEYS[1], '#since')
if not since then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), '#born')
end
-- Another process may have lost what was written last.
local store = (string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or '') .. redis.call('ZSCORE', KEYS[1], '#born')
local state = store ~= ARGV[5] and 0 or redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 2
if not since or tonumber(last) < ends - ARGV[4] then
    since = now
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), '#since')
end
local answer = {store, state}
ends = string.format('%.0f', ends)
if state ~= 2 then
    redis.call('ZADD', KEYS[1], ends, ARGV[1])
end
for i = 7, #ARGV do
    redis.call('ZADD', KEYS[1], 'XX', ends, '-' .. ARGV[i] .. ' ' .. ARGV[1])
end
if ARGV[6] == '1' and now >= since + ARGV[2] then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))) do
        if string.sub(member, 1, 1) ~= '#' then
            local uid = string.match(member, '^%-(%S+) ') or member
            redis.call('ZREM', KEYS[1], member)
            redis.call('ZADD', KEYS[1], ends, '-' .. uid .. ' ' .. ARGV[1])
            answer[#answer + 1] = uid
        end
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return answer
