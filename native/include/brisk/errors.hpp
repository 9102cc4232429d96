// What can go wrong beside the kernel's own errors, which are std::filesystem::filesystem_error.
//
//   std::runtime_error
//   ├── ShortRead          the file ended before its size at opening said
//   ├── ChecksumMismatch   a chunk's bytes are not the expected ones
//   └── Cancelled          a CancelToken was raised before the last chunk was done
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace brisk {

// The file ended before the requested range did: truncated, or still being written.
class ShortRead : public std::runtime_error {
 public:
  ShortRead(const std::filesystem::path& path, std::uint64_t offset, std::uint64_t wanted,
            std::uint64_t got);
};

// A chunk is damaged, or missing, or there is one chunk more than there are checksums.
class ChecksumMismatch : public std::runtime_error {
 public:
  ChecksumMismatch(std::filesystem::path path, std::uint64_t chunk, const std::string& detail);

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::uint64_t chunk() const noexcept { return chunk_; }
  // Where the chunk begins in the file, in bytes.
  [[nodiscard]] std::uint64_t offset() const noexcept;
  [[nodiscard]] const std::string& detail() const noexcept { return detail_; }

 private:
  std::filesystem::path path_;
  std::uint64_t chunk_;
  std::string detail_;
};

// The job stopped because its token was raised.
class Cancelled : public std::runtime_error {
 public:
  explicit Cancelled(std::uint64_t bytes_done);

  [[nodiscard]] std::uint64_t bytes_done() const noexcept { return bytes_done_; }

 private:
  std::uint64_t bytes_done_;
};

}  // namespace brisk
