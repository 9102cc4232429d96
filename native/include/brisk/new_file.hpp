// Writes a file that did not exist before, whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "brisk/file_descriptor.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// Owns the new file until `keep`; a NewFile destroyed earlier removes it again.
// Not movable. `write` may be called from many threads at once, all else from one.
class NewFile {
 public:
  // Creates the file (EEXIST if there is anything of this name, a symbolic link included) and
  // reserves `size` bytes for it where the file system can. Throws filesystem_error.
  NewFile(const std::filesystem::path& path, std::uint64_t size, const SystemCalls& calls = {});
  ~NewFile();

  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Writes all of `source` at `offset`. Throws filesystem_error.
  void write(std::uint64_t offset, std::span<const std::byte> source) const;

  // Waits until the contents are on the disk; from then on the file stays. The folder's entry is
  // the caller's to make durable. Throws filesystem_error.
  void keep();

 private:
  void reserve(std::uint64_t size) const;

  std::filesystem::path path_;
  SystemCalls calls_;
  FileDescriptor fd_;
  bool kept_ = false;
};

}  // namespace brisk
