-- How much is in one mailbox, and in all of them.
--
-- KEYS[1..7]  as in mailbox.lua
--
-- Returns messages, bytes and messages in flight of this one; then the totals, name after value.
return {
    redis.call('HLEN', KEYS[2]),
    tonumber(redis.call('HGET', KEYS[1], 'bytes') or 0),
    redis.call('ZCARD', KEYS[4]),
    redis.call('HGETALL', KEYS[6]),
}
