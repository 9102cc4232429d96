-- Keep the lease. KEYS: lease, epoch. ARGV: holder, ttl_ms, my epoch. Returns 1, or 0 if lost.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[3] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
