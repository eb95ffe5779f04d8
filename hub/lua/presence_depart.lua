-- Tell the leaves of a channel that have been held back for long enough.
--
-- KEYS[1]  the roll: a hash, see hub/roll.py
-- KEYS[2]  leaves that are held back: a sorted set of "NAME\nUSER" by the millisecond at which each is told
-- ARGV[1]  Redis channel for leave pushes
-- ARGV[2]  the channel
-- ARGV[3]  how many at most
--
-- Returns how many it was; whoever calls, each is told once. The clock is that of Redis.
local roll, away = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local due = redis.call('ZRANGEBYSCORE', away, '-inf', now, 'LIMIT', 0, ARGV[3])
local lines = {'3'}
for _, member in ipairs(due) do
    local name, user = string.match(member, '^(.-)\n(.*)$')
    local rest = {}
    for other in string.gmatch(redis.call('HGET', roll, 'h' .. user) or '', '%S+') do
        if other ~= name then
            rest[#rest + 1] = other
        end
    end
    if #rest == 0 then
        redis.call('HDEL', roll, 'h' .. user)
    else
        redis.call('HSET', roll, 'h' .. user, table.concat(rest, ' '))
    end
    redis.call('ZREM', away, member)
    lines[#lines + 1] = ARGV[2]
    lines[#lines + 1] = '"leave":{"info":{"user":' .. cjson.encode(user) .. ',"client":' .. cjson.encode(name) .. '}}'
end
if #due > 0 then
    redis.call('PUBLISH', ARGV[1], table.concat(lines, '\n'))
end
return #due
