// Faults memory in ahead of the reads: otherwise each reading thread stops for the kernel to clear
// the pages it reads into.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace brisk {

// Up to this size reads that fault pages in themselves are as quick.
inline constexpr std::size_t kPopulateBytesMin = std::size_t{8} << 20;

// Faults pages in, in order, from two threads of its own, while others already use them.
// The destructor stops the work and joins. The memory must outlive this object and stay in place.
class BackgroundPopulate {
 public:
  // Each part must begin on a page's boundary.
  explicit BackgroundPopulate(const std::vector<std::span<std::byte>>& parts);
  ~BackgroundPopulate();

  BackgroundPopulate(const BackgroundPopulate&) = delete;
  BackgroundPopulate& operator=(const BackgroundPopulate&) = delete;

  // Bytes faulted in so far.
  [[nodiscard]] std::size_t populated() const;
  // Waits until the work has ended; false if it has not within `timeout`. It ends early on kernels
  // before 5.14 and when memory is short: `populated` tells.
  [[nodiscard]] bool wait(std::chrono::duration<double> timeout) const;

 private:
  void populate();

  std::vector<std::span<std::byte>> slices_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};

  mutable std::mutex mutex_;  // guards the next two
  mutable std::condition_variable ended_;
  std::size_t populated_ = 0;
  std::size_t running_ = 0;

  std::vector<std::thread> threads_;
};

}  // namespace brisk
