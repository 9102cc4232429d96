// Sends the bytes of tasks to all devices that want some of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "brisk/device.hpp"
#include "brisk/device_copier.hpp"
#include "brisk/device_plan.hpp"

namespace brisk {

// The contexts that these are of, one for each device, in the order of their first one.
[[nodiscard]] std::vector<SharedContext> contexts_of(std::span<const SharedMemory> memory);

// Owns a copier per device. What it refers to must outlive it.
class DeviceFanOut {
 public:
  // When a task is on all its devices: on the thread of the last copier.
  using Landed = std::function<void(std::size_t task)>;

  DeviceFanOut(const DevicePlan& plan, std::span<const SharedMemory> memory, unsigned streams,
               Landed landed, const DeviceCopier::Failed& failed);

  // `bytes` holds the whole task, or of a task at least all its parts, until it has landed.
  // Thread-safe; each task once.
  void send(std::size_t task, const std::byte* bytes);

 private:
  void note_landed(std::size_t task);

  const DevicePlan& plan_;
  const std::span<const SharedMemory> memory_;
  const Landed landed_;
  std::vector<std::size_t> copier_of_;       // by allocation
  std::vector<std::atomic<unsigned>> left_;  // devices, by task
  std::vector<std::unique_ptr<DeviceCopier>> copiers_;
};

}  // namespace brisk
