-- Take out what the user has acknowledged. What has never been sent stays, whatever is asked.
--
-- KEYS[1..7], ARGV[1..10]  as in mailbox.lua
-- ARGV[11..]  ids
--
-- Returns how many were taken out; what is not there any more, or never was, counts for nothing.
local taken = 0
for i = 11, #ARGV do
    if redis.call('HEXISTS', box, ARGV[i]) == 1 then
        remove(ARGV[i])
        taken = taken + 1
    end
end
fill()
schedule()
return taken
