-- Claim mailboxes in which something is due, so that of all workers one visits them.
--
-- KEYS[1]  due, as in mailbox.lua
-- ARGV[1]  how many at most
-- ARGV[2]  for how long, ms; after that they are due again, should the worker be gone
--
-- Returns their channels.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local channels = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
for _, channel in ipairs(channels) do
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), channel)
end
return channels
