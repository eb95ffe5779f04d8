-- Send the newest values of channels of one `latest` namespace to the worker that asks, in order with what is published.
--
-- KEYS[1..]  the channels' last values
-- ARGV[1]    the worker's own Redis channel
-- ARGV[2]    the question's token, which goes with them
--
-- Publishes lines: the token, then a value for each key, empty where there is none. Whatever the worker receives before it
-- is as old or older, and what comes behind it is newer: which no reply to a command could promise. Returns nothing of use.
local values = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
    values[i] = values[i] or ''
end
redis.call('PUBLISH', ARGV[1], ARGV[2] .. '\n' .. table.concat(values, '\n'))
return 1
