-- Delete only as the newest leader. KEYS: epoch, target. ARGV: my epoch, field.
local now = redis.call('GET', KEYS[1])
if now ~= ARGV[1] then
  return redis.error_reply('FENCED epoch ' .. (now or 'unknown'))
end
return redis.call('HDEL', KEYS[2], ARGV[2])
