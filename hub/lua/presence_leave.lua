-- Take clients of one worker out of a channel's roll, and tell it or hold that back.
--
-- KEYS[1]    the roll: a hash, see hub/roll.py
-- KEYS[2]    leaves that are held back: a sorted set of "NAME\nUSER" by the millisecond at which each is told
-- ARGV[1]    uid of the worker whose clients they are; what has passed to another one stays
-- ARGV[2]    life of both keys in ms
-- ARGV[3]    Redis channel for leave pushes, '' for none
-- ARGV[4]    the channel
-- ARGV[5]    how long a leave is held back, in ms
-- ARGV[6..]  client, user, and '1' if its leave may be held back, of each
--
-- Returns how many were there; so a call can be repeated. The clock is that of Redis.
local roll, away = KEYS[1], KEYS[2]
local uid, topic, channel, grace = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + grace)
local lines, count = {'3'}, 0

local function lower(field)
    local left = redis.call('HINCRBY', roll, field, -1)
    if left <= 0 then
        redis.call('HDEL', roll, field)
    end
    return left
end

for i = 6, #ARGV, 3 do
    local client, user = ARGV[i], ARGV[i + 1]
    local owner, name = string.match(redis.call('HGET', roll, 'c' .. client) or '', '^(.-)\n(.-)\n')
    if owner == uid then
        count = count + 1
        redis.call('HDEL', roll, 'c' .. client)
        lower('n' .. uid)
        lower('#clients')
        if user ~= '' and lower('u' .. user) <= 0 then
            lower('#users')
        end
        if topic == '' then
            -- nobody is told
        elseif ARGV[i + 2] == '1' and user ~= '' and grace > 0 then
            local held = redis.call('HGET', roll, 'h' .. user)
            redis.call('HSET', roll, 'h' .. user, held and held .. ' ' .. name or name)
            redis.call('ZADD', away, due, name .. '\n' .. user)
        else
            lines[#lines + 1] = channel
            lines[#lines + 1] = '"leave":{"info":{"user":' .. cjson.encode(user) .. ',"client":' .. cjson.encode(name) .. '}}'
        end
    end
end
redis.call('PEXPIRE', roll, ARGV[2])
redis.call('PEXPIRE', away, ARGV[2])
if #lines > 1 then
    redis.call('PUBLISH', topic, table.concat(lines, '\n'))
end
return count
