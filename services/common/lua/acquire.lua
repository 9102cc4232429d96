-- Take or keep the lease. KEYS: lease, epoch. ARGV: holder, ttl_ms. Returns the epoch; or, while
-- someone else holds it, minus the milliseconds until it ends at the earliest.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  local left_ms = redis.call('PTTL', KEYS[1])
  return left_ms < 0 and -tonumber(ARGV[2]) or -left_ms
end
local last = redis.call('GET', KEYS[2])
if holder and last then -- ours already: the reply to an earlier call was lost
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return last
end
-- The clock's part makes epochs rise even when all of Redis was lost.
local t = redis.call('TIME')
local epoch = math.max(tonumber(last or '0') + 1, t[1] * 1000000 + t[2])
redis.call('SET', KEYS[2], string.format('%d', epoch))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return string.format('%d', epoch)
