#include "brisk/populate.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <exception>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older headers lack the name
#endif

namespace brisk {
namespace {

constexpr std::size_t kSliceBytes = kPopulateBytesMin;  // bounds how long stopping takes
constexpr std::size_t kThreads = 2;
constexpr std::chrono::hours kWaitMax{24};  // a longer one would overflow the clock

}  // namespace

BackgroundPopulate::BackgroundPopulate(const std::vector<std::span<std::byte>>& parts) {
  for (const auto part : parts) {
    for (std::size_t begin = 0; begin < part.size(); begin += kSliceBytes) {
      slices_.push_back(part.subspan(begin, std::min(kSliceBytes, part.size() - begin)));
    }
  }
  threads_.reserve(kThreads);
  try {
    for (std::size_t i = 0; i < std::min(kThreads, slices_.size()); ++i) {
      {
        const std::lock_guard lock(mutex_);
        ++running_;
      }
      threads_.emplace_back([this] { populate(); });
    }
  } catch (const std::exception&) {  // no thread, or no memory for one
    // Only speed is lost without these threads: the reads fault the pages in themselves.
    const std::lock_guard lock(mutex_);
    --running_;
  }
}

BackgroundPopulate::~BackgroundPopulate() {
  stop_.store(true, std::memory_order_relaxed);
  for (auto& thread : threads_) thread.join();
}

std::size_t BackgroundPopulate::populated() const {
  const std::lock_guard lock(mutex_);
  return populated_;
}

bool BackgroundPopulate::wait(std::chrono::duration<double> timeout) const {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, std::min<std::chrono::duration<double>>(timeout, kWaitMax),
                         [this] { return running_ == 0; });
}

void BackgroundPopulate::populate() {
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= slices_.size()) break;
    const auto slice = slices_[index];
    // Refused by kernels before 5.14, and when memory is short: then the reads decide.
    if (::madvise(slice.data(), slice.size(), MADV_POPULATE_WRITE) != 0) break;
    const std::lock_guard lock(mutex_);
    populated_ += slice.size();
  }
  const std::lock_guard lock(mutex_);
  if (--running_ == 0) ended_.notify_all();
}

}  // namespace brisk
