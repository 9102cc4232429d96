// Keeps host memory pinned for as long as anyone needs it so. No Python in here.
#pragma once

#include <cstddef>
#include <span>

#include "brisk/device.hpp"

namespace brisk {

// One holder's share of pinned memory. The memory is pinned with its first holder and goes back
// with its last one; a holder of a part of it shares it. Memory that others than Brisk pinned is
// taken as it is, and theirs to keep so.
class PinLease {
 public:
  // The memory must outlive this object. Throws DeviceError, for example where the system limits
  // how much may be pinned, or if only a part of the memory is pinned already.
  PinLease(SharedContext context, std::span<std::byte> memory);
  ~PinLease();

  PinLease(const PinLease&) = delete;
  PinLease& operator=(const PinLease&) = delete;

 private:
  std::byte* shared_ = nullptr;  // where the range begins that we pinned; null if others did
};

}  // namespace brisk
