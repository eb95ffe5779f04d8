-- Send a nonce through Redis to the worker that asks, and say which generation the store is in. generation.lua goes before.
--
-- KEYS[1]  the store's generation record
-- ARGV[1]  the worker's own Redis channel
-- ARGV[2]  the nonce; also a new generation's, if this step begins one
--
-- Returns the generation's token. A worker whose commands go to one server and whose subscriptions to another gets this
-- answer but never the nonce.
local token = generation(KEYS[1], ARGV[2], identify())
redis.call('PUBLISH', ARGV[1], ARGV[2])
return token
