#include "brisk/staging_ring.hpp"

namespace brisk {

StagingRing::StagingRing(const SharedContext& context, std::size_t slot_bytes, std::size_t slots)
    : slot_bytes_(slot_bytes), memory_(slot_bytes * slots) {
  try {
    registration_.emplace(context, memory_.room());
  } catch (const DeviceError&) {
    // The system forbids it or the limit is reached. Only speed is lost, and `pinned` tells.
  }
  free_.reserve(slots);
  for (std::size_t slot = slots; slot > 0; --slot) free_.push_back(slot - 1);
}

std::optional<std::size_t> StagingRing::take() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return closed_ || !free_.empty(); });
  if (closed_) return std::nullopt;
  const std::size_t slot = free_.back();
  free_.pop_back();
  return slot;
}

void StagingRing::give(std::size_t slot) noexcept {
  const std::lock_guard lock(mutex_);
  free_.push_back(slot);
  changed_.notify_one();
}

void StagingRing::close() noexcept {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::span<std::byte> StagingRing::bytes(std::size_t slot) const noexcept {
  return memory_.room().subspan(slot * slot_bytes_, slot_bytes_);
}

}  // namespace brisk
