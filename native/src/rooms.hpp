// Memory for the reads in flight of a job that keeps none of its bytes.
#pragma once

#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

#include "brisk/chunk.hpp"
#include "brisk/fork_shield.hpp"
#include "brisk/page_buffer.hpp"

namespace brisk {

// A fixed number of equal rooms. `take` and `give_back` are thread-safe.
class Rooms {
 public:
  Rooms(std::size_t count, std::size_t size) : memory_(count * size) {
    for (std::size_t i = 0; i < count; ++i) free_.push_back(memory_.room().data() + i * size);
  }

  // Never waits: there must be as many rooms as there can be reads in flight.
  [[nodiscard]] std::span<std::byte> take(std::size_t size) {
    const std::lock_guard lock(mutex_);
    std::byte* const room = free_.back();
    free_.pop_back();
    return {room, align_up(size, kDirectAlignment)};
  }
  void give_back(std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    free_.push_back(memory_.room().data() + (bytes.data() - memory_.room().data()));
  }
  [[nodiscard]] std::span<std::byte> all() const noexcept { return memory_.room(); }

 private:
  PageBuffer memory_;
  ForkShield shield_{memory_.room()};
  std::mutex mutex_;  // guards free_
  std::vector<std::byte*> free_;
};

}  // namespace brisk
