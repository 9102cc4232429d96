// Writes a file that did not exist before, whole or not at all.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "brisk/file_descriptor.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// Owns the new file until `keep`; a NewFile destroyed earlier removes it again.
// Not movable. `write` and `write_blocks` may be called from many threads at once, all else from
// one.
class NewFile {
 public:
  // kDirect: `write_blocks` goes past the page cache where the file system grants it.
  enum class Writes { kBuffered, kDirect };

  // Creates the file (EEXIST if there is anything of this name, a symbolic link included) and
  // reserves `size` bytes for it where the file system can. Throws filesystem_error.
  NewFile(const std::filesystem::path& path, std::uint64_t size, const SystemCalls& calls = {},
          Writes writes = Writes::kBuffered);
  ~NewFile();

  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Writes all of `source` at `offset`. Throws filesystem_error.
  void write(std::uint64_t offset, std::span<const std::byte> source) const;

  // Writes the first `size` bytes of `blocks` at `offset`. `offset`, the address of `blocks` and
  // its length must be multiples of kDirectAlignment; what is behind `size` may reach the file,
  // where it is cut off by `keep`, and so must lie behind the file's end. Throws filesystem_error.
  void write_blocks(std::uint64_t offset, std::span<const std::byte> blocks, std::size_t size);

  // True as long as write_blocks goes past the page cache.
  [[nodiscard]] bool direct() const noexcept { return direct_; }

  // Waits until the contents are on the disk; from then on the file stays. The folder's entry is
  // the caller's to make durable. Throws filesystem_error.
  void keep();

 private:
  void reserve() const;
  // Returns how much the kernel took, more than 0; or 0 for EINVAL.
  [[nodiscard]] std::size_t write_some(std::uint64_t offset,
                                       std::span<const std::byte> source) const;

  std::filesystem::path path_;
  SystemCalls calls_;
  FileDescriptor fd_;
  std::uint64_t size_;
  std::atomic<bool> direct_ = false;
  bool kept_ = false;
};

}  // namespace brisk
