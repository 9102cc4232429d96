// Reads byte ranges of a file through the page cache: small pieces, such as headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "brisk/errors.hpp"
#include "brisk/file_descriptor.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// Owns one descriptor of a regular file. Movable, not copyable.
class BufferedFile {
 public:
  // Throws filesystem_error as DirectFile does.
  explicit BufferedFile(const std::filesystem::path& path, const SystemCalls& calls = {});

  // Size at the time of opening, in bytes.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  // Fills `room` from `offset`, or throws ShortRead or filesystem_error.
  void read(std::uint64_t offset, std::span<std::byte> room) const;

 private:
  std::filesystem::path path_;
  SystemCalls calls_;
  FileDescriptor fd_;
  std::uint64_t size_;
};

}  // namespace brisk
