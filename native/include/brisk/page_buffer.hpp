// Memory that a disk can write into fast: page-aligned, in huge pages where the kernel grants them.
#pragma once

#include <cstddef>
#include <span>

namespace brisk {

// Owns an anonymous mapping of zeros between two guard pages, which nothing may touch. A mapping
// of 2 MiB or more starts on a huge page's boundary. Movable, not copyable; freeing never throws.
class PageBuffer {
 public:
  // Throws std::bad_alloc. `size` may be 0.
  explicit PageBuffer(std::size_t size);
  ~PageBuffer();

  PageBuffer(PageBuffer&& other) noexcept;
  PageBuffer& operator=(PageBuffer&& other) noexcept;
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  // The bytes asked for. Never null, valid as long as this object owns them.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {data_, size_}; }
  // `bytes` and what follows up to the end of the last page, so that a direct read of the last
  // block has room.
  [[nodiscard]] std::span<std::byte> room() const noexcept;

  // True if at least half of the buffer lies in huge pages now; false too where that cannot be
  // told. madvise succeeds even when the kernel has none to give, so the mapping is looked up.
  [[nodiscard]] bool in_huge_pages() const;

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace brisk
