// The calls about devices, contexts and memory.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "state.hpp"

using namespace standin;

namespace {

struct Error {
  cuda::Result code;
  const char* name;
  const char* text;
};

constexpr std::array kErrors{
    Error{0, "CUDA_SUCCESS", "no error"},
    Error{1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    Error{2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    Error{3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    Error{100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    Error{101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    Error{201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    Error{400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    Error{700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    Error{712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
          "part or all of the requested memory range is already mapped"},
    Error{713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
          "pointer does not correspond to a registered memory region"},
};

const Error* find_error(cuda::Result code) {
  const auto found = std::find_if(kErrors.begin(), kErrors.end(),
                                  [code](const Error& error) { return error.code == code; });
  return found == kErrors.end() ? nullptr : &*found;
}

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

// Refuses a call that needs a current context and a working device.
cuda::Result enter_context(State& all, const char* call, DeviceState*& device) {
  if (const cuda::Result refused = enter(all, call); refused != 0) return refused;
  device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  return device->broken;
}

std::byte* at(cuda::Pointer pointer) { return reinterpret_cast<std::byte*>(pointer); }

bool is_idle(const State& all, int ordinal) {
  return std::all_of(all.streams.begin(), all.streams.end(), [ordinal](const auto& entry) {
    const cuda::StreamTag& stream = *entry.second;
    return stream.ordinal != ordinal || (stream.work.empty() && !stream.busy);
  });
}

}  // namespace

extern "C" {

cuda::Result cuInit(unsigned) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result failure = fault(all, "cuInit"); failure != 0) return failure;
  if (all.initialized) return cuda::kSuccess;
  const std::uint64_t count = number_from("BRISK_STANDIN_DEVICES", 2);
  if (count == 0) return cuda::kNoDevice;
  all.device_bytes = number_from("BRISK_STANDIN_MEMORY_BYTES", std::uint64_t{1} << 30);
  for (std::uint64_t ordinal = 0; ordinal < count; ++ordinal) {
    all.devices.push_back(std::make_unique<DeviceState>());
    all.devices.back()->context.ordinal = static_cast<int>(ordinal);
  }
  all.initialized = true;
  return cuda::kSuccess;
}

cuda::Result cuGetErrorName(cuda::Result code, const char** name) {
  const Error* const error = find_error(code);
  *name = error != nullptr ? error->name : nullptr;
  return error != nullptr ? cuda::kSuccess : cuda::kInvalidValue;
}

cuda::Result cuGetErrorString(cuda::Result code, const char** text) {
  const Error* const error = find_error(code);
  *text = error != nullptr ? error->text : nullptr;
  return error != nullptr ? cuda::kSuccess : cuda::kInvalidValue;
}

cuda::Result cuDeviceGetCount(int* count) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result refused = enter(all, "cuDeviceGetCount"); refused != 0) return refused;
  *count = static_cast<int>(all.devices.size());
  return cuda::kSuccess;
}

cuda::Result cuDeviceGet(cuda::Device* device, int ordinal) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result refused = enter(all, "cuDeviceGet"); refused != 0) return refused;
  if (ordinal < 0 || ordinal >= static_cast<int>(all.devices.size())) {
    return cuda::kInvalidDevice;
  }
  *device = ordinal;
  return cuda::kSuccess;
}

cuda::Result cuDeviceGetName(char* name, int length, cuda::Device device) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result refused = enter(all, "cuDeviceGetName"); refused != 0) return refused;
  std::snprintf(name, static_cast<std::size_t>(length), "Stand-in %d", device);
  return cuda::kSuccess;
}

cuda::Result cuDeviceTotalMem_v2(std::size_t* bytes, cuda::Device) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result refused = enter(all, "cuDeviceTotalMem_v2"); refused != 0) return refused;
  *bytes = all.device_bytes;
  return cuda::kSuccess;
}

cuda::Result cuDevicePrimaryCtxRetain(cuda::Context* context, cuda::Device device) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result refused = enter(all, "cuDevicePrimaryCtxRetain"); refused != 0) {
    return refused;
  }
  *context = &all.devices.at(static_cast<std::size_t>(device))->context;
  ++(*context)->retained;
  return cuda::kSuccess;
}

cuda::Result cuDevicePrimaryCtxRelease_v2(cuda::Device device) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  cuda::ContextTag& context = all.devices.at(static_cast<std::size_t>(device))->context;
  if (context.retained == 0) return cuda::kInvalidContext;
  --context.retained;
  return cuda::kSuccess;
}

cuda::Result cuCtxPushCurrent_v2(cuda::Context context) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const cuda::Result refused = enter(all, "cuCtxPushCurrent_v2"); refused != 0) return refused;
  if (context == nullptr || context->retained == 0) return cuda::kInvalidContext;
  context_stack().push_back(context);
  return cuda::kSuccess;
}

cuda::Result cuCtxPopCurrent_v2(cuda::Context* context) {
  auto& stack = context_stack();
  if (stack.empty()) return cuda::kInvalidContext;
  *context = stack.back();
  stack.pop_back();
  return cuda::kSuccess;
}

cuda::Result cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceState* device = nullptr;
  if (const auto refused = enter_context(all, "cuMemGetInfo_v2", device); refused != 0) {
    return refused;
  }
  *free = all.device_bytes - device->allocated_bytes;
  *total = all.device_bytes;
  return cuda::kSuccess;
}

cuda::Result cuMemAlloc_v2(cuda::Pointer* pointer, std::size_t bytes) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceState* device = nullptr;
  if (const auto refused = enter_context(all, "cuMemAlloc_v2", device); refused != 0) {
    return refused;
  }
  if (bytes == 0) return cuda::kInvalidValue;
  if (bytes > all.device_bytes - device->allocated_bytes) return cuda::kOutOfMemory;
  const int access = all.sink ? PROT_NONE : PROT_READ | PROT_WRITE;
  void* const memory =
      ::mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return cuda::kOutOfMemory;
  device->allocations.emplace(static_cast<std::byte*>(memory), bytes);
  device->allocated_bytes += bytes;
  *pointer = reinterpret_cast<cuda::Pointer>(memory);
  return cuda::kSuccess;
}

// Waits for the device, as the driver does; gives the memory back even if it complains.
cuda::Result cuMemFree_v2(cuda::Pointer pointer) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  const cuda::Result failure = fault(all, "cuMemFree_v2");
  DeviceState* const device = current(all);
  if (device == nullptr) return cuda::kInvalidContext;
  const auto found = device->allocations.find(at(pointer));
  if (found == device->allocations.end()) return cuda::kInvalidValue;
  all.changed.wait(lock, [&] { return is_idle(all, device->context.ordinal); });
  ::munmap(found->first, found->second);
  device->allocated_bytes -= found->second;
  device->allocations.erase(found);
  return failure != 0 ? failure : device->broken;
}

cuda::Result cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned flags) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceState* device = nullptr;
  if (const auto refused = enter_context(all, "cuMemHostRegister_v2", device); refused != 0) {
    return refused;
  }
  if (bytes == 0 || flags != cuda::kHostRegisterPortable) return cuda::kInvalidValue;
  auto* const begin = static_cast<std::byte*>(memory);
  const bool taken = std::any_of(all.registrations.begin(), all.registrations.end(),
                                 [&](const auto& registration) {
                                   return begin < registration.first + registration.second &&
                                          registration.first < begin + bytes;
                                 });
  if (taken) return cuda::kHostMemoryAlreadyRegistered;
  all.registrations.emplace(begin, bytes);
  all.counts.registered_bytes += bytes;
  all.counts.registered_bytes_max =
      std::max(all.counts.registered_bytes_max, all.counts.registered_bytes);
  return cuda::kSuccess;
}

cuda::Result cuMemHostUnregister(void* memory) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const auto found = all.registrations.find(static_cast<std::byte*>(memory));
  if (found == all.registrations.end()) return cuda::kHostMemoryNotRegistered;
  all.counts.registered_bytes -= found->second;
  all.registrations.erase(found);
  return fault(all, "cuMemHostUnregister");
}

cuda::Result cuPointerGetAttribute(void* data, int attribute, cuda::Pointer pointer) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (const auto refused = enter(all, "cuPointerGetAttribute"); refused != 0) return refused;
  if (attribute != cuda::kPointerMemoryType) return cuda::kInvalidValue;
  const bool known = contains(all.registrations, at(pointer), 1) ||
                     std::any_of(all.devices.begin(), all.devices.end(), [&](const auto& device) {
                       return contains(device->allocations, at(pointer), 1);
                     });
  if (!known) return cuda::kInvalidValue;
  // The truth: the devices' memory is host memory here.
  const unsigned type = cuda::kMemoryTypeHost;
  std::memcpy(data, &type, sizeof type);
  return cuda::kSuccess;
}
}

#define SAME_TYPE(call) static_assert(std::is_same_v<decltype(&call), decltype(cuda::Calls::call)>)
SAME_TYPE(cuInit);
SAME_TYPE(cuGetErrorName);
SAME_TYPE(cuGetErrorString);
SAME_TYPE(cuDeviceGetCount);
SAME_TYPE(cuDeviceGet);
SAME_TYPE(cuDeviceGetName);
SAME_TYPE(cuDeviceTotalMem_v2);
SAME_TYPE(cuDevicePrimaryCtxRetain);
SAME_TYPE(cuDevicePrimaryCtxRelease_v2);
SAME_TYPE(cuCtxPushCurrent_v2);
SAME_TYPE(cuCtxPopCurrent_v2);
SAME_TYPE(cuMemGetInfo_v2);
SAME_TYPE(cuMemAlloc_v2);
SAME_TYPE(cuMemFree_v2);
SAME_TYPE(cuMemHostRegister_v2);
SAME_TYPE(cuMemHostUnregister);
SAME_TYPE(cuPointerGetAttribute);
