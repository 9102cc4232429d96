// The calls into the kernel that the library makes on files. The tests replace single ones to meet
// faults that cannot be caused at will: a file system without O_DIRECT, a full disk, a torn read.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <system_error>

#include "brisk/ring.hpp"

namespace brisk {

// Each has the meaning and the errno of its namesake. Called from several threads at once.
struct SystemCalls {
  // Turns O_DIRECT on, on a descriptor that is open for reading.
  std::function<int(int fd)> enable_direct;
  std::function<ssize_t(int fd, void* target, std::size_t length, off_t offset)> pread;
  std::function<ssize_t(int fd, const void* source, std::size_t length, off_t offset)> pwrite;
  std::function<int(int fd)> fsync;
  // See ring.hpp.
  std::function<std::unique_ptr<Ring>(unsigned depth, std::error_code& refusal)> open_ring;

  // The real ones.
  SystemCalls();
};

}  // namespace brisk
