// Memory that a disk can write into fast: page-aligned, in huge pages where the kernel grants them.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <thread>
#include <vector>

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

// Faults the pages of a buffer in, in order, from two threads of its own, while others already
// read into it. Without it each reading thread stops for the kernel to clear its pages.
// The destructor stops the work and joins. The buffer must outlive this object and stay in place.
class BackgroundPopulate {
 public:
  explicit BackgroundPopulate(const PageBuffer& buffer);
  ~BackgroundPopulate();

  BackgroundPopulate(const BackgroundPopulate&) = delete;
  BackgroundPopulate& operator=(const BackgroundPopulate&) = delete;

 private:
  void populate();

  std::span<std::byte> room_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace brisk
