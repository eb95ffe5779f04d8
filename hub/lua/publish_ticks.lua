-- Publish a batch of a ticker with bars: publish_latest.lua, and in the same step what became of the bars by these ticks.
--
-- KEYS[1]     the lease
-- KEYS[2]     the source's state, written with the batch
-- KEYS[3]     the forming bars as of the last checkpoint: a hash by symbol
-- KEYS[4]     the journal: a list of the packed batches since then
-- KEYS[5]     the bars that are closed and not known to be published: a list, the oldest first
-- KEYS[6..]   the channels' last values, one for each body
-- ARGV[1]     the feed channel
-- ARGV[2]     the packed batch, as it goes to the workers
-- ARGV[3]     fencing token that the lease must carry
-- ARGV[4]     position of the source after this batch
-- ARGV[5]     how many of KEYS[5] have been published and are to go
-- ARGV[6]     1: a checkpoint, the journal is empty from here on; 0: the batch goes into the journal
-- ARGV[7]     how many symbols' forming bars come
-- ARGV[8..]   the bodies, in the order of KEYS[6..]; then symbol and forming bars in turn, '' where it has none now; then
--             the bars that these ticks have closed
--
-- Returns 1, or the error LEASELOST where somebody else holds the lease now: then nothing was written and nothing published.
-- All keys share the namespace as hash tag, so this runs on one node of a Cluster.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[3] then
    return redis.error_reply('LEASELOST the lease carries another token')
end
redis.call('HSET', KEYS[2], 'position', ARGV[4])
if ARGV[5] ~= '0' then
    redis.call('LTRIM', KEYS[5], ARGV[5], -1)
end
if ARGV[6] == '1' then
    redis.call('DEL', KEYS[4])
elseif #KEYS > 5 then
    redis.call('RPUSH', KEYS[4], ARGV[2])
end
local at = 8
for i = 6, #KEYS do
    redis.call('SET', KEYS[i], ARGV[at])
    at = at + 1
end
for _ = 1, tonumber(ARGV[7]) do
    if ARGV[at + 1] == '' then
        redis.call('HDEL', KEYS[3], ARGV[at])
    else
        redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
    end
    at = at + 2
end
for i = at, #ARGV do
    redis.call('RPUSH', KEYS[5], ARGV[i])
end
if #KEYS > 5 then
    redis.call('PUBLISH', ARGV[1], ARGV[2])
end
return 1
