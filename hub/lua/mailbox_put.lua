-- Keep a message and send it to the user's devices, behind what was kept before it.
--
-- KEYS[1..7], ARGV[1..10]  as in mailbox.lua
-- KEYS[8]   the id of the message with this idempotency key
-- ARGV[11]  what is kept of the message
-- ARGV[12]  messages in this mailbox  ARGV[13]  their bytes  ARGV[14]  bytes in all mailboxes; at most
-- ARGV[15]  'reject' or 'drop_oldest'
-- ARGV[16]  how long the idempotency key is remembered, ms, or '' for none
-- ARGV[17]  control channel  ARGV[18]  what to tell all workers there, or '' for nothing
--
-- Returns {'stored', id}, {'duplicate', id} or {why there is no room}; then nothing was kept.
if ARGV[16] ~= '' then
    local before = redis.call('GET', KEYS[8])
    if before then
        -- A write, so that WAIT and WAITAOF behind it speak of the message too.
        redis.call('PEXPIRE', KEYS[8], ARGV[16])
        return {'duplicate', before}
    end
end
local id, reason = store(ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15])
if id then
    if ARGV[16] ~= '' then
        redis.call('SET', KEYS[8], id, 'PX', ARGV[16])
    end
    fill()
    if ARGV[18] ~= '' then
        redis.call('PUBLISH', ARGV[17], ARGV[18])
    end
end
schedule()
return id and {'stored', id} or {reason}
