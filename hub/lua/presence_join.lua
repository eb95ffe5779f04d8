-- Enter clients of one worker into a channel's roll, and tell who was not known to be there.
--
-- KEYS[1]    the roll: a hash, see hub/roll.py
-- KEYS[2]    leaves that are held back: a sorted set of "NAME\nUSER" by the millisecond at which each is told
-- ARGV[1]    uid of the worker whose clients they are
-- ARGV[2]    the roll's life in ms
-- ARGV[3]    Redis channel for join pushes, '' for none
-- ARGV[4]    the channel
-- ARGV[5..]  client, user, info (JSON) and name of each; the name is the client id by which it has been announced,
--            '' where it has not been
--
-- Returns the names. A client that is there already stays, and only its worker changes; so a call can be repeated.
local roll, away = KEYS[1], KEYS[2]
local uid, topic, channel = ARGV[1], ARGV[3], ARGV[4]
local lines, names = {'3'}, {}

local function lower(field)
    if redis.call('HINCRBY', roll, field, -1) <= 0 then
        redis.call('HDEL', roll, field)
    end
end

-- Take back a held leave of `user`: that of `wanted`, or the first one if it is ''. Returns its name, or nil.
local function take_back(user, wanted)
    local rest, taken = {}, nil
    for name in string.gmatch(redis.call('HGET', roll, 'h' .. user) or '', '%S+') do
        if not taken and (wanted == '' or wanted == name)
            and redis.call('ZREM', away, name .. '\n' .. user) == 1 then
            taken = name
        else
            rest[#rest + 1] = name
        end
    end
    if taken and #rest == 0 then
        redis.call('HDEL', roll, 'h' .. user)
    elseif taken then
        redis.call('HSET', roll, 'h' .. user, table.concat(rest, ' '))
    end
    return taken
end

for i = 5, #ARGV, 4 do
    local client, user, info, name = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local entry = redis.call('HGET', roll, 'c' .. client)
    if entry then
        local owner
        owner, name = string.match(entry, '^(.-)\n(.-)\n')
        if owner ~= uid then
            lower('n' .. owner)
            redis.call('HINCRBY', roll, 'n' .. uid, 1)
        end
    else
        local known = user ~= '' and take_back(user, name)
        if known then
            name = known
        elseif name == '' then
            name = client
            lines[#lines + 1] = channel
            lines[#lines + 1] = '"join":{"info":' .. info .. '}'
        end
        redis.call('HINCRBY', roll, 'n' .. uid, 1)
        redis.call('HINCRBY', roll, '#clients', 1)
        if user ~= '' and redis.call('HINCRBY', roll, 'u' .. user, 1) == 1 then
            redis.call('HINCRBY', roll, '#users', 1)
        end
    end
    redis.call('HSET', roll, 'c' .. client, uid .. '\n' .. name .. '\n' .. info)
    names[#names + 1] = name
end
redis.call('PEXPIRE', roll, ARGV[2])
if topic ~= '' and #lines > 1 then
    redis.call('PUBLISH', topic, table.concat(lines, '\n'))
end
return names
