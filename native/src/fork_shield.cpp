#include "brisk/fork_shield.hpp"

#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18  // Linux 4.14; older headers lack the names
#define MADV_KEEPONFORK 19
#endif

namespace brisk {

ForkShield::ForkShield(std::span<std::byte> memory) noexcept : memory_(memory) {
  const bool is_shielded =
      !memory.empty() && ::madvise(memory.data(), memory.size(), MADV_WIPEONFORK) == 0;
  if (!is_shielded) memory_ = {};
}

ForkShield::~ForkShield() {
  if (!memory_.empty()) ::madvise(memory_.data(), memory_.size(), MADV_KEEPONFORK);
}

}  // namespace brisk
