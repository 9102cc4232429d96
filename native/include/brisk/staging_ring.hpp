// Host memory of a fixed size that bytes pass through on their way to devices. No Python in here.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "brisk/device.hpp"
#include "brisk/fork_shield.hpp"
#include "brisk/page_buffer.hpp"

namespace brisk {

// Owns `slots` rooms of equal size, aligned for direct reads, and pinned where the system allows
// it: copies from memory that is not pinned are right too, but slower. Thread-safe.
class StagingRing {
 public:
  // Throws std::bad_alloc.
  StagingRing(const SharedContext& context, std::size_t slot_bytes, std::size_t slots);

  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // Returns a slot that nobody holds, once there is one; none after `close`.
  [[nodiscard]] std::optional<std::size_t> take();
  void give(std::size_t slot) noexcept;
  // Ends all waiting, now and from now on.
  void close() noexcept;

  [[nodiscard]] std::span<std::byte> bytes(std::size_t slot) const noexcept;
  [[nodiscard]] std::size_t size_bytes() const noexcept { return memory_.size(); }
  [[nodiscard]] bool pinned() const noexcept { return registration_.has_value(); }

 private:
  const std::size_t slot_bytes_;
  const PageBuffer memory_;
  const ForkShield shield_{memory_.room()};
  std::optional<HostRegistration> registration_;

  std::mutex mutex_;  // guards what is below
  std::condition_variable changed_;
  std::vector<std::size_t> free_;
  bool closed_ = false;
};

}  // namespace brisk
