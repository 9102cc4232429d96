-- Write only as the newest leader. KEYS: epoch, target. ARGV: my epoch, field, value.
-- Any other epoch is refused, a missing one too: after a loss of Redis the next leader's may
-- not be known yet, and a deposed one must not slip through.
local now = redis.call('GET', KEYS[1])
if now ~= ARGV[1] then
  return redis.error_reply('FENCED epoch ' .. (now or 'unknown'))
end
return redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
