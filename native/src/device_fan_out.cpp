#include "device_fan_out.hpp"

#include <algorithm>
#include <utility>

namespace brisk {
namespace {

std::size_t place_of(std::span<const SharedContext> contexts, int ordinal) {
  const auto found = std::find_if(contexts.begin(), contexts.end(), [ordinal](const auto& context) {
    return context->ordinal() == ordinal;
  });
  return static_cast<std::size_t>(found - contexts.begin());
}

}  // namespace

std::vector<SharedContext> contexts_of(std::span<const SharedMemory> memory) {
  std::vector<SharedContext> contexts;
  for (const SharedMemory& one : memory) {
    if (place_of(contexts, one->context()->ordinal()) < contexts.size()) continue;
    contexts.push_back(one->context());
  }
  return contexts;
}

DeviceFanOut::DeviceFanOut(const DevicePlan& plan, std::span<const SharedMemory> memory,
                           unsigned streams, Landed landed, const DeviceCopier::Failed& failed)
    : plan_(plan), memory_(memory), landed_(std::move(landed)), left_(plan.tasks.size()) {
  const std::vector<SharedContext> contexts = contexts_of(memory);
  for (const SharedMemory& one : memory) {
    copier_of_.push_back(place_of(contexts, one->context()->ordinal()));
  }
  for (const SharedContext& context : contexts) {
    copiers_.push_back(std::make_unique<DeviceCopier>(
        context, streams, [this](std::size_t task) { note_landed(task); }, failed));
  }
}

void DeviceFanOut::send(std::size_t task, const std::byte* bytes) {
  std::vector<std::vector<CopyPart>> parts(copiers_.size());
  for (const PlannedPart& part : plan_.tasks[task].parts) {
    const cuda::Pointer target = memory_[part.allocation]->pointer() + part.allocation_offset;
    parts[copier_of_[part.allocation]].push_back(
        {.target = target, .source = {bytes + part.task_offset, part.size}});
  }
  const auto wanted =
      std::count_if(parts.begin(), parts.end(), [](const auto& some) { return !some.empty(); });
  left_[task] = static_cast<unsigned>(wanted);
  for (std::size_t i = 0; i < copiers_.size(); ++i) {
    if (!parts[i].empty()) copiers_[i]->push(task, std::move(parts[i]));
  }
}

void DeviceFanOut::note_landed(std::size_t task) {
  if (--left_[task] == 0) landed_(task);
}

}  // namespace brisk
