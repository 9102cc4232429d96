// Keeps a fork from tearing reads that are under way. No Python in here.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

namespace brisk {

// As long as this object lives, a process that is forked gets zeros in place of this memory.
//
// Otherwise both processes share its pages until one of them writes to them, and that one goes on
// with a copy: what the disk writes into the page meanwhile may be in the other process only. What
// a child would get of a read under way is of no use to it anyway. Memory that is shared on purpose
// has no such copies; for it, and on kernels before 4.14, this does nothing. Movable.
class ForkShield {
 public:
  // `memory` begins and ends with a page; it must outlive this object.
  explicit ForkShield(std::span<std::byte> memory) noexcept;
  ~ForkShield();

  ForkShield(ForkShield&& other) noexcept : memory_(std::exchange(other.memory_, {})) {}
  ForkShield& operator=(ForkShield&&) = delete;

 private:
  std::span<std::byte> memory_;
};

}  // namespace brisk
