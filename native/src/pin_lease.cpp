#include "brisk/pin_lease.hpp"

#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace brisk {
namespace {

struct Range {
  std::size_t size;
  std::unique_ptr<HostRegistration> registration;
  std::size_t holders;
};

// What we pinned. Pinning and unpinning happen under the lock: otherwise one load could unpin what
// another one has just found pinned.
struct Registry {
  std::mutex mutex;
  std::map<std::byte*, Range> ranges;
};

// Never destroyed: memory may be unpinned as late as the process ends.
Registry& registry() {
  static auto& all = *new Registry;
  return all;
}

std::map<std::byte*, Range>::iterator find(Registry& all, std::span<std::byte> memory) {
  auto after = all.ranges.upper_bound(memory.data());
  if (after == all.ranges.begin()) return all.ranges.end();
  const auto found = std::prev(after);
  const bool inside = memory.data() + memory.size() <= found->first + found->second.size;
  return inside ? found : all.ranges.end();
}

}  // namespace

PinLease::PinLease(SharedContext context, std::span<std::byte> memory) {
  if (memory.empty()) return;
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = find(all, memory);
  if (found != all.ranges.end()) {
    ++found->second.holders;
    shared_ = found->first;
    return;
  }
  if (is_pinned(*context, memory)) return;
  auto registration = std::make_unique<HostRegistration>(std::move(context), memory);
  all.ranges.emplace(
      memory.data(),
      Range{.size = memory.size(), .registration = std::move(registration), .holders = 1});
  shared_ = memory.data();
}

PinLease::~PinLease() {
  if (shared_ == nullptr) return;
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.ranges.find(shared_);
  if (--found->second.holders == 0) all.ranges.erase(found);
}

}  // namespace brisk
