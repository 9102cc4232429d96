#include "brisk/file_descriptor.hpp"

#include <unistd.h>

#include <utility>

namespace brisk {

FileDescriptor::~FileDescriptor() {
  // Linux frees the descriptor even when close fails, so there is nothing to retry.
  if (fd_ >= 0) ::close(fd_);
}

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

}  // namespace brisk
