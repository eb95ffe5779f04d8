-- Publish one message of a `stream` channel: number it, keep it, spread it, all in one step. generation.lua goes before.
--
-- KEYS[1]   the store's generation record
-- KEYS[2]   the channel's meta: a hash of top offset o, epoch e, generation g, identity i, version v and its epoch ve
-- KEYS[3]   the channel's publications: a stream whose ids are the offsets, newest history_size
-- KEYS[4]   what became of this idempotency key; with ARGV[8] to ARGV[10], all of which are absent without options
-- ARGV[1]   the Redis channel
-- ARGV[2]   the channel
-- ARGV[3]   the body, an object with one member at least
-- ARGV[4]   a nonce of this call's own, for an epoch
-- ARGV[5]   history_size
-- ARGV[6]   history_ttl in ms
-- ARGV[7]   history_meta_ttl in ms
-- ARGV[8]   idempotency_ttl in ms, or '' without a key
-- ARGV[9]   version, or '' without one
-- ARGV[10]  the version's epoch; '' is the one that the channel has
--
-- Returns {offset as text, epoch, what}: what is 'published'; 'duplicate': the key was used, the position is that of then;
-- or 'outdated': the channel has this version or a newer one, the position is that of now.
local has_key = ARGV[8] and ARGV[8] ~= ''
if has_key then
    local then_offset, then_epoch = string.match(redis.call('GET', KEYS[4]) or '', '^(%d+) (.+)$')
    if then_offset then
        -- A write, so that WAIT and WAITAOF behind a retry on a new connection can't be satisfied by nothing.
        redis.call('PEXPIRE', KEYS[4], ARGV[8])
        return {then_offset, then_epoch, 'duplicate'}
    end
end
local top, epoch = touch(KEYS[1], KEYS[2], KEYS[3], ARGV[4], ARGV[7])
local new_version = {}
if ARGV[9] and ARGV[9] ~= '' then
    local known = redis.call('HMGET', KEYS[2], 'v', 've')
    local same = ARGV[10] == '' or ARGV[10] == known[2]
    if known[1] and same and tonumber(known[1]) >= tonumber(ARGV[9]) then
        redis.call('PEXPIRE', KEYS[2], ARGV[7])
        return {top, epoch, 'outdated'}
    end
    new_version = {'v', ARGV[9], 've', ARGV[10] == '' and known[2] or ARGV[10]}
end
-- Not tostring: it writes numbers from 1e+14 on with an exponent.
local offset = string.format('%.0f', tonumber(top) + 1)
local body = '{"offset":' .. offset .. ',' .. string.sub(ARGV[3], 2)
redis.call('XADD', KEYS[3], 'MAXLEN', '=', ARGV[5], offset .. '-0', 'b', body)
-- Behind XADD: where that is refused nothing has happened, and no number is left without its publication.
redis.call('HSET', KEYS[2], 'o', offset, unpack(new_version))
keep(KEYS[2], ARGV[7])
keep(KEYS[3], ARGV[6])
if has_key then
    redis.call('SET', KEYS[4], offset .. ' ' .. epoch, 'PX', ARGV[8])
end
redis.call('PUBLISH', ARGV[1], table.concat({'2', ARGV[2], epoch, offset, body}, '\n'))
return {offset, epoch, 'published'}
