-- Hand a device that has just subscribed what is in flight, then send what waits to all devices, which it is one of.
--
-- KEYS[1..7], ARGV[1..10]  as in mailbox.lua
--
-- Returns the publications in flight, oldest first; the other devices have had those. What waits they have not, so it
-- goes to all by PUBLISH.
local ids = redis.call('ZRANGE', flight, 0, -1)
table.sort(ids)
local publications = {}
for _, id in ipairs(ids) do
    if may_send(id) then
        local sent = times_sent(id) + 1
        publications[#publications + 1] = compose(id, sent)
        count_sent(id, sent)
    end
end
fill()
schedule()
return publications
