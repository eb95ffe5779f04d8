#!lua flags=no-writes
-- Who is in a channel.
--
-- KEYS[1]  the roll: a hash, see hub/roll.py
-- ARGV[1]  how many clients may be listed; 0 for the counts alone, which are O(1)
--
-- Returns the number of clients, that of users, and id and info (JSON) of each client, unless they are more than that.
local counts = redis.call('HMGET', KEYS[1], '#clients', '#users')
local answer = {tonumber(counts[1] or 0), tonumber(counts[2] or 0)}
if answer[1] > tonumber(ARGV[1]) then
    return answer
end
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
    if string.sub(entries[i], 1, 1) == 'c' then
        answer[#answer + 1] = string.sub(entries[i], 2)
        answer[#answer + 1] = string.match(entries[i + 1], '^.-\n.-\n(.*)$')
    end
end
return answer
