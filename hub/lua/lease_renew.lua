-- Keep the lease, if it is still this term's.
--
-- KEYS[1]  the lease
-- ARGV[1]  the term's fencing token
-- ARGV[2]  the lease's life from now on, in ms
--
-- Returns 1, or 0 where the lease has expired or passed on.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
    return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
