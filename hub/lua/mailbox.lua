-- Prelude of every mailbox_*.lua; the loader puts it in front of them. One mailbox is one channel with one user.
--
-- KEYS[1]  box: a hash of `bytes`, and how often each message was sent, by id; a message never sent has no field
-- KEYS[2]  mail: a hash of what is kept of each message, by id; its body up to the two tags that `compose` adds
-- KEYS[3]  wait: a sorted set, all scores 0, of the ids that are not in flight
-- KEYS[4]  flight: a sorted set of ids that were sent, by the millisecond at which they are sent again
-- KEYS[5]  due: of the namespace, a sorted set of channels by the millisecond at which something in them is due
-- KEYS[6]  totals: of the store, a hash of messages, bytes, dead_bytes, the last id's ms and seq, and counters
-- KEYS[7]  dead: of the store, a stream of dead letters
-- ARGV[1]  the channel            ARGV[2]  the Redis channel that carries it
-- ARGV[3]  life of a message, ms  ARGV[4]  messages in flight   ARGV[5]  until it is sent again, ms; doubled each time
-- ARGV[6]  times a message is sent at most                      ARGV[7]  from 0 to 1, what spreads redeliveries
-- ARGV[8]  dead letters kept      ARGV[9]  their bytes       ARGV[10]  bytes in flight, beside one message
--
-- A message is either in `wait` or in `flight`, always in `mail`, and leaves all three in one step: acknowledged by its
-- user, or with a reason into `dead`. `PUBLISH` says whether anybody listens, and nothing counts as sent without that.
-- The clock is that of Redis. Ids are times (13 digits of ms, 6 of a sequence) and grow over the whole store, so that no
-- failover and no empty mailbox brings one back for another message; of equal width, so that text order is their order.
local box, mail, wait, flight, due, totals, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local channel, topic = ARGV[1], ARGV[2]
local ttl_ms, window, timeout_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local most_sent, jitter = tonumber(ARGV[6]), tonumber(ARGV[7])
local most_dead, most_dead_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
local window_bytes = tonumber(ARGV[10])
-- What Redis needs for one message besides its body, about; small messages would pass every bound on bytes otherwise.
local OVERHEAD = 256
-- A pause is doubled up to this, unless the first one is longer.
local LONGEST_PAUSE_MS = 3600000
-- Of messages that expire or dead letters that are forgotten in one step, so that Redis serves others in between.
local AT_ONCE = 100

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole(number)
    return string.format('%.0f', number)
end

local function next_id()
    local last = redis.call('HMGET', totals, 'ms', 'seq')
    local ms, seq = now, 0
    if last[1] and tonumber(last[1]) >= now then
        ms, seq = tonumber(last[1]), tonumber(last[2]) + 1
        if seq > 999999 then
            ms, seq = ms + 1, 0
        end
    end
    redis.call('HSET', totals, 'ms', whole(ms), 'seq', whole(seq))
    return string.format('%013.0f-%06.0f', ms, seq)
end

local function has_expired(id)
    return tonumber(string.sub(id, 1, 13)) + ttl_ms <= now
end

local function times_sent(id)
    return tonumber(redis.call('HGET', box, id) or 0)
end

-- The publication as clients get it; what is kept ends inside its tags.
local function compose(id, sent)
    return redis.call('HGET', mail, id) .. '"id":"' .. id .. '","deliveries":"' .. whole(sent) .. '"}}'
end

local function account(size, messages)
    redis.call('HINCRBY', box, 'bytes', whole(size))
    redis.call('HINCRBY', totals, 'bytes', whole(size))
    redis.call('HINCRBY', totals, 'messages', messages)
end

-- Take a message out. Returns what was kept of it; nil where the store itself has evicted that.
local function remove(id)
    local kept = redis.call('HGET', mail, id)
    redis.call('HDEL', mail, id)
    redis.call('HDEL', box, id)
    redis.call('ZREM', wait, id)
    redis.call('ZREM', flight, id)
    if kept then
        account(-(#kept + OVERHEAD), -1)
    else
        -- Its size is known no more, so it goes from the sums with the mailbox: see `schedule`.
        redis.call('HINCRBY', totals, 'messages', -1)
    end
    return kept
end

local function forget_letter(entry, kept)
    redis.call('XDEL', dead, entry)
    redis.call('HINCRBY', totals, 'dead_bytes', whole(-(#kept + OVERHEAD)))
end

local function bury(id, reason)
    local sent = times_sent(id)
    local kept = remove(id)
    if not kept then
        redis.call('HINCRBY', totals, 'evicted', 1)
        return
    end
    redis.call('XADD', dead, '*', 'c', channel, 'r', reason, 'i', id, 'n', whole(sent), 'b', kept)
    redis.call('HINCRBY', totals, 'dead_bytes', whole(#kept + OVERHEAD))
    redis.call('HINCRBY', totals, 'dead_' .. reason, 1)
    for _ = 1, AT_ONCE do
        local bytes = tonumber(redis.call('HGET', totals, 'dead_bytes') or 0)
        if redis.call('XLEN', dead) <= most_dead and bytes <= most_dead_bytes then
            return
        end
        local oldest = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
        if not oldest then
            redis.call('HSET', totals, 'dead_bytes', 0)
            return
        end
        forget_letter(oldest[1], oldest[2][10])
        redis.call('HINCRBY', totals, 'dead_forgotten', 1)
    end
end

-- The first pause is the setting, each further one twice as long; up to a quarter longer, so that users don't stay in
-- step.
local function count_sent(id, sent)
    local pause = math.max(timeout_ms, math.min(timeout_ms * 2 ^ (sent - 1), LONGEST_PAUSE_MS))
    redis.call('HSET', box, id, whole(sent))
    redis.call('ZREM', wait, id)
    redis.call('ZADD', flight, whole(now + math.floor(pause * (1 + jitter / 4))), id)
end

-- Whether a message may be sent once more; if not, it is among the dead afterwards.
local function may_send(id)
    if has_expired(id) or redis.call('HEXISTS', mail, id) == 0 then
        bury(id, 'expired')
    elseif times_sent(id) >= most_sent then
        bury(id, 'max_deliveries')
    else
        return true
    end
    return false
end

-- Send to all devices. False: there are none.
local function send(id)
    local sent = times_sent(id) + 1
    if redis.call('PUBLISH', topic, '1\n' .. channel .. '\n' .. compose(id, sent)) == 0 then
        return false
    end
    count_sent(id, sent)
    return true
end

-- Take out what nobody has fetched in time, the oldest first.
local function expire()
    for _, id in ipairs(redis.call('ZRANGE', wait, 0, AT_ONCE - 1)) do
        if not has_expired(id) then
            return
        end
        bury(id, 'expired')
    end
end

-- Send what waits, in order, as far as the window and the devices let it.
local function fill()
    if redis.call('EXISTS', wait) == 0 then
        return
    end
    local flying, count = 0, 0
    for _, id in ipairs(redis.call('ZRANGE', flight, 0, -1)) do
        flying = flying + redis.call('HSTRLEN', mail, id)
        count = count + 1
    end
    while count < window do
        local ids = redis.call('ZRANGE', wait, 0, window - count - 1)
        if #ids == 0 then
            return
        end
        for _, id in ipairs(ids) do
            if may_send(id) then
                local size = redis.call('HSTRLEN', mail, id)
                if count > 0 and flying + size > window_bytes or not send(id) then
                    return
                end
                flying, count = flying + size, count + 1
            end
        end
    end
end

-- Where the store has evicted `wait` or `flight`, what was in there waits again: nobody would ever look at it.
local function mend()
    if redis.call('HLEN', mail) <= redis.call('ZCARD', wait) + redis.call('ZCARD', flight) then
        return
    end
    for _, id in ipairs(redis.call('HKEYS', mail)) do
        if not redis.call('ZSCORE', wait, id) and not redis.call('ZSCORE', flight, id) then
            redis.call('ZADD', wait, 0, id)
        end
    end
end

-- The last thing in every step: when has somebody to look at this mailbox again?
local function schedule()
    mend()
    local first = redis.call('ZRANGE', wait, 0, 0)[1]
    local at = first and tonumber(string.sub(first, 1, 13)) + ttl_ms
    local sent = redis.call('ZRANGE', flight, 0, 0, 'WITHSCORES')
    if sent[1] and (not at or tonumber(sent[2]) < at) then
        at = tonumber(sent[2])
    end
    if at then
        redis.call('ZADD', due, whole(at), channel)
    else
        redis.call('ZREM', due, channel)
        local left = tonumber(redis.call('HGET', box, 'bytes') or 0)
        if left > 0 then
            -- Of messages that the store has evicted; in the sums for ever they would fill all mailboxes.
            redis.call('HINCRBY', totals, 'bytes', whole(-left))
        end
        redis.call('DEL', box)
    end
end

local function oldest()
    local first = redis.call('ZRANGE', wait, 0, 0)[1]
    for _, id in ipairs(redis.call('ZRANGE', flight, 0, -1)) do
        if not first or id < first then
            first = id
        end
    end
    return first
end

-- Keep one more message. Returns its id, or nil and why there is no room: 'large', 'full' or 'total'.
--
-- most, most_bytes: of this mailbox; most_total: bytes of all; on_full: 'reject' or 'drop_oldest'.
local function store(kept, most, most_bytes, most_total, on_full)
    local size = #kept + OVERHEAD
    if size > most_bytes then
        return nil, 'large'
    end
    expire()
    local own = tonumber(redis.call('HGET', box, 'bytes') or 0)
    local total = tonumber(redis.call('HGET', totals, 'bytes') or 0)
    local count = redis.call('HLEN', mail)
    -- Not even all of the user's own would make room enough: then none of them is dropped.
    if total - (on_full == 'drop_oldest' and own or 0) + size > most_total then
        return nil, 'total'
    end
    while count >= most or own + size > most_bytes or total + size > most_total do
        if on_full ~= 'drop_oldest' then
            return nil, 'full'
        end
        local victim = oldest()
        if not victim then
            return nil, 'full'
        end
        bury(victim, 'overflow')
        local left = tonumber(redis.call('HGET', box, 'bytes') or 0)
        total = total - (own - left)
        own, count = left, count - 1
    end
    local id = next_id()
    redis.call('HSET', mail, id, kept)
    redis.call('ZADD', wait, 0, id)
    account(size, 1)
    return id
end
