-- Publish a batch of a `latest` namespace: keep the newest body of each channel, then one PUBLISH for all of them.
--
-- KEYS[1]     the lease; looked at only where a token is given
-- KEYS[2]     the source's state, written with the batch; used only with a lease
-- KEYS[3..]   the channels' last values, one for each body
-- ARGV[1]     the feed channel
-- ARGV[2]     the packed batch, as it goes to the workers
-- ARGV[3]     fencing token that the lease must carry, or '' for a batch without a lease
-- ARGV[4]     position of the source after this batch; only with a lease
-- ARGV[5..]   the bodies, in the order of KEYS[3..]
--
-- Returns 1, or the error LEASELOST where somebody else holds the lease now: then nothing was written and nothing published.
-- All keys share the namespace as hash tag, so this runs on one node of a Cluster.
if ARGV[3] ~= '' then
    if redis.call('HGET', KEYS[1], 'token') ~= ARGV[3] then
        return redis.error_reply('LEASELOST the lease carries another token')
    end
    redis.call('HSET', KEYS[2], 'position', ARGV[4])
end
for i = 3, #KEYS do
    redis.call('SET', KEYS[i], ARGV[i + 2])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
