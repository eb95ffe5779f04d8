-- Do what is due in one mailbox: send again what was not acknowledged in time, and what waits; bury what must not be.
--
-- KEYS[1..7], ARGV[1..10]  as in mailbox.lua
--
-- Safe at any time and from several workers: what has been sent again is not due any more. Where nobody listens, nothing
-- is in flight: all of it goes back to `wait`, and comes, in order, when a device subscribes.
local ids = redis.call('ZRANGEBYSCORE', flight, '-inf', whole(now))
table.sort(ids)
for _, id in ipairs(ids) do
    if may_send(id) and not send(id) then
        for _, other in ipairs(redis.call('ZRANGE', flight, 0, -1)) do
            redis.call('ZADD', wait, 0, other)
        end
        redis.call('DEL', flight)
        break
    end
end
expire()
fill()
schedule()
return 1
