-- Keep a channel's roll alive.
--
-- KEYS[1]  the roll: a hash, see hub/roll.py
-- ARGV[1]  uid of the worker that asks
-- ARGV[2]  the roll's life in ms
--
-- Returns how many of this worker's clients are in it.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return tonumber(redis.call('HGET', KEYS[1], 'n' .. ARGV[1]) or 0)
