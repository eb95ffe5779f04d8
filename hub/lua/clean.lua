-- Mark the private Valkey's planned stop, or go on in its generation after one. generation.lua goes before.
--
-- KEYS[1]  the store's generation record
-- ARGV[1]  'leave', right before the planned stop, or 'return', before anybody else connects after a start
-- ARGV[2]  the mark: to leave a new one, which also names a generation that this begins; to return, the one of the file
--          that hub/embedded.py wrote when it had seen the end
--
-- Returns the generation's token, or false for a mark that is not here: then something was lost or written since.
if ARGV[1] == 'leave' then
    -- Which first brings the record up to this process: the mark must not vouch for how an earlier one ended.
    local token = generation(KEYS[1], ARGV[2], identify())
    redis.call('HSET', KEYS[1], 'clean', ARGV[2])
    return token
end
local known = redis.call('HMGET', KEYS[1], 'clean', 'token')
if known[1] ~= ARGV[2] then
    return false
end
-- Before HSET, which a full memory refuses where it is the first write.
redis.call('HDEL', KEYS[1], 'clean')
redis.call('HSET', KEYS[1], 'identity', identify())
return known[2]
