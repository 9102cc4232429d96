// The calls about streams, events and copies.
#include <cstring>
#include <type_traits>

#include "state.hpp"

using namespace standin;

namespace {

// The stream, if it belongs to the current context; else why not.
cuda::Result enter_stream(State& all, const char* call, cuda::StreamHandle stream,
                          DeviceState*& device) {
  if (const cuda::Result refused = enter(all, call); refused != 0) return refused;
  device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  if (!all.streams.contains(stream)) return cuda::kInvalidHandle;
  if (stream->ordinal != device->context.ordinal) return cuda::kInvalidHandle;
  return cuda::kSuccess;
}

cuda::Result enter_event(State& all, const char* call, cuda::EventHandle event,
                         DeviceState*& device) {
  if (const cuda::Result refused = enter(all, call); refused != 0) return refused;
  device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  if (!all.events.contains(event)) return cuda::kInvalidHandle;
  if (event->ordinal != device->context.ordinal) return cuda::kInvalidHandle;
  return cuda::kSuccess;
}

}  // namespace

extern "C" {

cuda::Result cuStreamCreate(cuda::StreamHandle* stream, unsigned) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const auto refused = enter(all, "cuStreamCreate"); refused != 0) return refused;
  const DeviceState* const device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  if (device->broken != 0) return device->broken;
  auto made = std::make_unique<cuda::StreamTag>();
  made->ordinal = device->context.ordinal;
  *stream = made.get();
  all.streams.emplace(*stream, std::move(made));
  (*stream)->thread = std::thread(run_stream, *stream);
  return cuda::kSuccess;
}

// Ends what the stream has to do first, and destroys it even if it complains.
cuda::Result cuStreamDestroy_v2(cuda::StreamHandle stream) {
  State& all = state();
  std::unique_ptr<cuda::StreamTag> owned;
  cuda::Result failure = cuda::kSuccess;
  {
    const std::lock_guard lock(all.mutex);
    failure = fault(all, "cuStreamDestroy_v2");
    DeviceState* device = nullptr;
    const auto refused = enter_stream(all, "cuStreamDestroy_v2", stream, device);
    if (refused != 0) return refused;
    stream->stop = true;
    all.changed.notify_all();
  }
  stream->thread.join();
  const std::lock_guard lock(all.mutex);
  all.streams.erase(stream);
  return failure;
}

cuda::Result cuStreamSynchronize(cuda::StreamHandle stream) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  DeviceState* device = nullptr;
  const auto refused = enter_stream(all, "cuStreamSynchronize", stream, device);
  if (refused != 0) return refused;
  all.changed.wait(lock, [&] { return stream->work.empty() && !stream->busy; });
  return device->broken;
}

cuda::Result cuEventCreate(cuda::EventHandle* event, unsigned) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const auto refused = enter(all, "cuEventCreate"); refused != 0) return refused;
  const DeviceState* const device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  auto made = std::make_unique<cuda::EventTag>();
  made->ordinal = device->context.ordinal;
  *event = made.get();
  all.events.emplace(*event, std::move(made));
  return cuda::kSuccess;
}

cuda::Result cuEventDestroy_v2(cuda::EventHandle event) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  DeviceState* device = nullptr;
  const auto refused = enter_event(all, "cuEventDestroy_v2", event, device);
  if (refused != 0) return refused;
  all.changed.wait(lock, [&] { return event->come >= event->recorded; });
  all.events.erase(event);
  return cuda::kSuccess;
}

cuda::Result cuEventRecord(cuda::EventHandle event, cuda::StreamHandle stream) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceState* device = nullptr;
  if (const auto refused = enter_event(all, "cuEventRecord", event, device); refused != 0) {
    return refused;
  }
  if (!all.streams.contains(stream) || stream->ordinal != event->ordinal) {
    return cuda::kInvalidHandle;
  }
  stream->work.push_back({.event = event, .mark = ++event->recorded});
  all.changed.notify_all();
  return device->broken;
}

cuda::Result cuEventSynchronize(cuda::EventHandle event) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  DeviceState* device = nullptr;
  if (const auto refused = enter_event(all, "cuEventSynchronize", event, device); refused != 0) {
    return refused;
  }
  const std::uint64_t wanted = event->recorded;
  all.changed.wait(lock, [&] { return event->come >= wanted; });
  return device->broken;
}

cuda::Result cuMemcpyHtoDAsync_v2(cuda::Pointer target, const void* source, std::size_t bytes,
                                  cuda::StreamHandle stream) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceState* device = nullptr;
  const auto refused = enter_stream(all, "cuMemcpyHtoDAsync_v2", stream, device);
  if (refused != 0) return refused;
  if (device->broken != 0) return device->broken;
  auto* const begin = reinterpret_cast<std::byte*>(target);
  if (!contains(device->allocations, begin, bytes)) return cuda::kInvalidValue;
  const auto* const from = static_cast<const std::byte*>(source);
  Work work{.target = begin, .source = from, .bytes = bytes};
  if (!contains(all.registrations, from, bytes)) {
    work.pageable.assign(from, from + bytes);
    work.source = work.pageable.data();
  }
  stream->work.push_back(std::move(work));
  all.changed.notify_all();
  return cuda::kSuccess;
}

cuda::Result cuMemcpyDtoH_v2(void* target, cuda::Pointer source, std::size_t bytes) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const auto refused = enter(all, "cuMemcpyDtoH_v2"); refused != 0) return refused;
  const DeviceState* const device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  if (device->broken != 0) return device->broken;
  const auto* const begin = reinterpret_cast<const std::byte*>(source);
  if (!contains(device->allocations, begin, bytes)) return cuda::kInvalidValue;
  std::memcpy(target, begin, bytes);
  return cuda::kSuccess;
}
}

#define SAME_TYPE(call) static_assert(std::is_same_v<decltype(&call), decltype(cuda::Calls::call)>)
SAME_TYPE(cuStreamCreate);
SAME_TYPE(cuStreamDestroy_v2);
SAME_TYPE(cuStreamSynchronize);
SAME_TYPE(cuEventCreate);
SAME_TYPE(cuEventDestroy_v2);
SAME_TYPE(cuEventRecord);
SAME_TYPE(cuEventSynchronize);
SAME_TYPE(cuMemcpyHtoDAsync_v2);
SAME_TYPE(cuMemcpyDtoH_v2);
