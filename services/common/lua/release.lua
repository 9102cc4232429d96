-- Give the lease back. KEYS: lease. ARGV: holder. Returns 1, or 0 if it was not ours. The epoch
-- stays: it must never go back.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
