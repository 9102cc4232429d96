// The kinds of memory that a pool can be made of, and what each takes to get.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "brisk/file_descriptor.hpp"
#include "brisk/page_buffer.hpp"

namespace brisk {

enum class PoolKind {
  kHugetlb,  // 2 MiB pages that the administrator reserved (vm.nr_hugepages); shareable
  kTmpfs,    // a file in a tmpfs that is mounted with huge pages; shareable
  kPrivate,  // anonymous memory that asks for huge pages; for one process only
  kSmall,    // a memfd, of 4 KiB pages unless the kernel is told otherwise; shareable
};

// One mapping that begins on a boundary of 2 MiB and is a multiple of that long. Movable, not
// copyable; freeing never throws.
class PoolMemory {
 public:
  // Gets at least `size` bytes. `folder` (may be empty) says where the tmpfs is mounted; without
  // it one is mounted where nobody sees it, which takes CAP_SYS_ADMIN. With a `name` the file is a
  // new one of that name in the folder, which stays when this object goes. Throws std::system_error
  // or std::bad_alloc where memory of this kind cannot be had.
  [[nodiscard]] static PoolMemory make(PoolKind kind, std::size_t size,
                                       const std::filesystem::path& folder,
                                       const std::string& name = {});
  // Maps the shared memory behind `path`, such as /proc/<pid>/fd/<n>, to be read only. Throws
  // filesystem_error: EINVAL for what is no such memory.
  [[nodiscard]] static PoolMemory attach(const std::filesystem::path& path);
  // The same, to be written to: what another process left, or still has.
  [[nodiscard]] static PoolMemory adopt(const std::filesystem::path& path);
  ~PoolMemory();

  PoolMemory(PoolMemory&& other) noexcept;
  PoolMemory& operator=(PoolMemory&& other) noexcept;
  PoolMemory(const PoolMemory&) = delete;
  PoolMemory& operator=(const PoolMemory&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
  // Where another process finds the memory as long as this one has it; none if it is private.
  [[nodiscard]] std::optional<std::filesystem::path> path() const;
  // Of the shared memory; -1 if it is private. Valid as long as this object is.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }

 private:
  explicit PoolMemory(PageBuffer pages);
  PoolMemory(FileDescriptor fd, std::size_t size, bool writable);

  std::unique_ptr<PageBuffer> pages_;  // of kPrivate
  FileDescriptor fd_;                  // of all others
  std::filesystem::path name_;         // of a file that has one
  std::span<std::byte> bytes_;
};

// Opens what `attach` takes, or `adopt` if it is `writable`. Throws as they do.
[[nodiscard]] FileDescriptor open_shared_memory(const std::filesystem::path& path,
                                                bool writable = false);

}  // namespace brisk
