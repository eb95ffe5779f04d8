-- Read dead letters, the oldest first.
--
-- KEYS[1]  the stream of dead letters
-- ARGV[1]  the id of the letter behind which to begin, or '' for the first
-- ARGV[2]  how many at most
--
-- Returns entries as XRANGE does: id, then c (channel), r (reason), i (message), n (times sent), b (what was kept).
return redis.call('XRANGE', KEYS[1], ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
