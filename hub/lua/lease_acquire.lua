-- Begin a term as the leader, unless somebody else holds the lease.
--
-- KEYS[1]  the lease: a hash of owner and token that expires
-- KEYS[2]  the source's state: a hash of position and the last token's number; it outlives every lease
-- ARGV[1]  who asks; no two processes have the same name
-- ARGV[2]  the lease's life in ms
--
-- Returns the new term's fencing token and the source's position ('' at first), or nil while another one leads.
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then
    return false
end
local token = redis.call('HINCRBY', KEYS[2], 'token', 1) .. '-' .. ARGV[1]
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'token', token)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {token, redis.call('HGET', KEYS[2], 'position') or ''}
