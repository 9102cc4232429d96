#include "state.hpp"

#include <algorithm>
#include <cstring>

namespace standin {
namespace {

// Reads all of the source, as a device does, and keeps nothing.
void swallow(const Work& work) {
  std::byte sum{};
  for (std::size_t i = 0; i < work.bytes; i += 64) sum ^= work.source[i];
  [[maybe_unused]] volatile std::byte kept = sum;
}

void note_running(State& all) {
  all.counts.running_copies_max = std::max(all.counts.running_copies_max, all.running_copies);
  const auto copying = std::count_if(all.devices.begin(), all.devices.end(),
                                     [](const auto& device) { return device->copying > 0; });
  all.counts.devices_copying_max =
      std::max(all.counts.devices_copying_max, static_cast<std::uint64_t>(copying));
}

void copy(State& all, DeviceState& device, const Work& work, std::unique_lock<std::mutex>& lock) {
  ++device.copying;
  ++all.running_copies;
  note_running(all);
  ++all.held_copies;
  all.changed.notify_all();
  all.changed.wait(lock, [&] { return !device.held; });
  --all.held_copies;
  const cuda::Result failure = fault(all, "copy");
  if (failure != cuda::kSuccess) device.broken = failure;
  if (device.broken == cuda::kSuccess) {
    const bool sink = all.sink;
    lock.unlock();
    if (sink) {
      swallow(work);
    } else {
      std::memcpy(work.target, work.source, work.bytes);
    }
    lock.lock();
    ++all.counts.copies;
    all.counts.copied_bytes += work.bytes;
    if (!work.pageable.empty()) ++all.counts.pageable_copies;
  }
  --device.copying;
  --all.running_copies;
}

}  // namespace

State& state() {
  static auto& all = *new State;
  return all;
}

cuda::Result fault(State& all, const std::string& call) {
  const auto found = all.faults.find(call);
  if (found == all.faults.end()) return cuda::kSuccess;
  if (found->second.calls_before-- > 0) return cuda::kSuccess;
  const cuda::Result code = found->second.code;
  all.faults.erase(found);
  return code;
}

cuda::Result enter(State& all, const char* call) {
  const cuda::Result failure = fault(all, call);
  if (failure != cuda::kSuccess) return failure;
  return all.initialized ? cuda::kSuccess : cuda::kNotInitialized;
}

std::vector<cuda::Context>& context_stack() {
  static thread_local std::vector<cuda::Context> stack;
  return stack;
}

DeviceState* current(State& all) {
  const auto& stack = context_stack();
  if (stack.empty() || stack.back() == nullptr || stack.back()->retained == 0) return nullptr;
  return all.devices[static_cast<std::size_t>(stack.back()->ordinal)].get();
}

bool contains(const std::map<std::byte*, std::size_t>& ranges, const std::byte* begin,
              std::size_t size) {
  auto after = ranges.upper_bound(const_cast<std::byte*>(begin));
  if (after == ranges.begin()) return false;
  const auto& [start, length] = *std::prev(after);
  return begin + size <= start + length;
}

void run_stream(cuda::StreamHandle stream) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  DeviceState& device = *all.devices[static_cast<std::size_t>(stream->ordinal)];
  for (;;) {
    all.changed.wait(lock, [&] { return !stream->work.empty() || stream->stop; });
    if (stream->work.empty()) return;
    const Work work = std::move(stream->work.front());
    stream->work.pop_front();
    stream->busy = true;
    if (work.event != nullptr) {
      work.event->come = std::max(work.event->come, work.mark);
    } else {
      copy(all, device, work, lock);
    }
    stream->busy = false;
    all.changed.notify_all();
  }
}

}  // namespace standin
