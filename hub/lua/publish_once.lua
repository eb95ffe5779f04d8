-- Publish one message that is not kept, unless its idempotency key was used.
--
-- KEYS[1]  what became of this idempotency key
-- ARGV[1]  the Redis channel
-- ARGV[2]  the packed publication
-- ARGV[3]  idempotency_ttl in ms
--
-- Returns 'published' or 'duplicate'.
if not redis.call('SET', KEYS[1], '', 'NX', 'PX', ARGV[3]) then
    return 'duplicate'
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 'published'
