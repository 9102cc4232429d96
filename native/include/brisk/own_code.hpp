// Has the pages of this library's own code in memory before the disk is busy.
#pragma once

namespace brisk {

// Reads what of this library's code is not in memory, at its first call in a process. A page that
// is first run during a load is read from the disk behind all reads that are queued there, and
// one thread, if not the whole load, waits for it. Only speed is lost where the kernel refuses.
void fault_in_own_code() noexcept;

}  // namespace brisk
