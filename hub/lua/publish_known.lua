-- Publish one value of a `latest` namespace in a store that is nearly full: in place of the last one, or not at all.
--
-- KEYS[1]     the channel's last value
-- ARGV[1]     the feed channel
-- ARGV[2]     the packed batch of this one publication, as it goes to the workers
-- ARGV[3]     the body
-- ARGV[4]     bytes that any body may have; a longer one must not be longer than the last value
--
-- Returns 1, or 'full': the channel is new, or would grow; nothing was written and nothing published then.
local last = redis.call('GET', KEYS[1])
if not last or #ARGV[3] > math.max(#last, tonumber(ARGV[4])) then
    return 'full'
end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
