#include "brisk/system_calls.hpp"

#include <fcntl.h>
#include <unistd.h>

namespace brisk {

SystemCalls::SystemCalls()
    : enable_direct([](int fd) { return ::fcntl(fd, F_SETFL, O_DIRECT); }),
      pread([](int fd, void* target, std::size_t length, off_t offset) {
        return ::pread(fd, target, length, offset);
      }),
      pwrite([](int fd, const void* source, std::size_t length, off_t offset) {
        return ::pwrite(fd, source, length, offset);
      }),
      fsync([](int fd) { return ::fsync(fd); }),
      open_ring(brisk::open_ring) {}

}  // namespace brisk
