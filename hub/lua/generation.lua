-- Prelude of every script that touches a `stream` channel; the loader puts it in front of them.
--
-- The store's identity is read inside each step, and not at connect: so no command, over whichever connection, is
-- carried out under a generation that a failover or restart has ended. INFO costs 2 µs of Redis' time.
-- The newest GENERATIONS elements of an epoch are kept; hub/position.py has its shape and the same number.
local GENERATIONS = 8

-- Returns the store's identity, which is another one for each process and after each promotion.
local function identify()
    local info = redis.call('INFO', 'replication')
    if string.match(info, 'role:(%a+)') ~= 'master' then
        error({err = 'READONLY a replica numbers nothing'})
    end
    return string.match(info, 'master_replid:(%x+)')
end

-- Returns the store's generation, token and number, from the record (a hash: identity, number, token, clean).
--
-- A new identity (a replica promoted, a process started anew, a record that is gone) begins a new generation. The mark
-- `clean` of a planned stop (clean.lua) is taken away by whoever comes after it, as it speaks of nothing later.
local function generation(record, nonce, identity)
    local known = redis.call('HMGET', record, 'identity', 'number', 'token', 'clean')
    if known[1] == identity then
        if known[4] then
            redis.call('HDEL', record, 'clean')
        end
        return known[3], known[2]
    end
    -- First, as a full memory refuses HSET, but not behind another write: this one must not fail for want of memory.
    redis.call('HDEL', record, 'clean')
    local number = string.format('%.0f', (tonumber(known[2]) or 0) + 1)
    local token = number .. '.' .. nonce
    redis.call('HSET', record, 'identity', identity, 'number', number, 'token', token)
    return token, number
end

-- Returns where a channel stands, its top offset as text and its epoch, both as of this generation; the channel exists
-- from then on. The caller writes next, at least PEXPIRE: WAIT and WAITAOF behind a script then speak of all it has told.
-- What a full memory must refuse comes as the caller's first write.
local function touch(record, meta, stream, nonce, meta_ttl_ms)
    local identity = identify()
    local known = redis.call('HMGET', meta, 'o', 'e', 'i', 'g')
    local offset, epoch = known[1], known[2]
    if epoch and known[3] == identity then
        return offset, epoch  -- nothing has happened to the store since the last touch
    end
    local token, number = generation(record, nonce, identity)
    if not epoch then
        offset, epoch = '0', number .. '.' .. nonce
        redis.call('HSET', meta, 'o', offset, 'e', epoch, 'g', token, 'i', identity)
        -- Entries of a channel whose meta was evicted bear offsets that will be given anew.
        redis.call('DEL', stream)
        return offset, epoch
    end
    if known[4] ~= token then
        epoch = epoch .. '@' .. offset .. ',' .. number .. '.' .. nonce
        local _, commas = string.gsub(epoch, ',', ',')
        for _ = GENERATIONS, commas do
            epoch = string.match(epoch, ',(.*)$')
        end
    end
    -- Before HSET for the sake of a full memory, as above: who only reads needs the new epoch too.
    redis.call('PEXPIRE', meta, meta_ttl_ms)
    redis.call('HSET', meta, 'e', epoch, 'g', token, 'i', identity)
    return offset, epoch
end

-- Keeps a key for ttl_ms from now, or up to a second longer: what is written often is not given a new end each time.
local function keep(key, ttl_ms)
    if redis.call('PTTL', key) < tonumber(ttl_ms) then
        redis.call('PEXPIRE', key, ttl_ms + 1000)
    end
end
