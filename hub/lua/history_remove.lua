-- Delete a `stream` channel's publications; the position goes on. generation.lua goes before.
--
-- KEYS[1]  the store's generation record
-- KEYS[2]  the channel's meta
-- KEYS[3]  the channel's publications
-- ARGV[1]  a nonce of this call's own, for an epoch
-- ARGV[2]  history_meta_ttl in ms
--
-- Returns {top offset as text, epoch}.
local top, epoch = touch(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
return {top, epoch}
