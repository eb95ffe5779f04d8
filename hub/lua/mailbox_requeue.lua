-- Put a dead letter back into its mailbox, as a new message that was never sent.
--
-- KEYS[1..7], ARGV[1..10]  as in mailbox.lua
-- ARGV[11]  the letter's id
-- ARGV[12]  messages in this mailbox  ARGV[13]  their bytes  ARGV[14]  bytes in all mailboxes; at most
--
-- Returns {'stored', id}, {'gone'}, or {why there is no room}; then the letter stays where it is.
local letter = redis.call('XRANGE', dead, ARGV[11], ARGV[11])[1]
if not letter or letter[2][2] ~= channel then
    return {'gone'}
end
-- Never dropping others for it: they would take its place among the dead.
local id, reason = store(letter[2][10], tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]), 'reject')
if id then
    forget_letter(letter[1], letter[2][10])
    fill()
end
schedule()
return id and {'stored', id} or {reason}
