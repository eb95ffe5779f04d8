-- Strike clients off a dead worker's manifest of which the application has been told, and take the next ones.
--
-- KEYS[1]  the leases, see manifest_lease.lua
-- KEYS[2]  the dead worker's manifest: a hash of entries by client id
-- ARGV[1]  uid of the dead worker
-- ARGV[2]  uid of the claimant
-- ARGV[3]  length of a lease in ms
-- ARGV[4]  how many to take
-- ARGV[5…] client ids to strike off
--
-- Returns client ids and entries in turn, none at the end; false where somebody else has the claim by now.
for i = 5, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[i])
end
local claim = '-' .. ARGV[1] .. ' ' .. ARGV[2]
if not redis.call('ZSCORE', KEYS[1], claim) then
    return false
end
if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('ZREM', KEYS[1], claim)
    return {}
end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]), claim)
return redis.call('HRANDFIELD', KEYS[2], ARGV[4], 'WITHVALUES')
