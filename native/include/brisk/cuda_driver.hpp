// NVIDIA's driver library, opened when it is first needed: one build serves machines with and
// without a GPU, and needs no toolkit. No Python in here.
//
// The declarations are our own, from the driver API's public documentation. They hold the binary
// interface of CUDA 11 to 13 on 64-bit Linux: where a call has a second version, `_v2` is the
// symbol that is bound, as NVIDIA's own header does it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "brisk/device_error.hpp"

namespace brisk {

namespace cuda {

using Result = int;                      // CUresult
using Device = int;                      // CUdevice
using Pointer = unsigned long long;      // CUdeviceptr: an address in a device's memory
using Context = struct ContextTag*;      // CUcontext
using StreamHandle = struct StreamTag*;  // CUstream
using EventHandle = struct EventTag*;    // CUevent

inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotInitialized = 3;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kInvalidContext = 201;
inline constexpr Result kInvalidHandle = 400;
inline constexpr Result kIllegalAddress = 700;
inline constexpr Result kHostMemoryAlreadyRegistered = 712;
inline constexpr Result kHostMemoryNotRegistered = 713;

inline constexpr unsigned kStreamNonBlocking = 1;     // CU_STREAM_NON_BLOCKING
inline constexpr unsigned kEventBlockingSync = 1;     // CU_EVENT_BLOCKING_SYNC
inline constexpr unsigned kEventDisableTiming = 2;    // CU_EVENT_DISABLE_TIMING
inline constexpr unsigned kHostRegisterPortable = 1;  // CU_MEMHOSTREGISTER_PORTABLE
inline constexpr int kPointerMemoryType = 2;          // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
inline constexpr unsigned kMemoryTypeHost = 1;        // CU_MEMORYTYPE_HOST
inline constexpr unsigned kMemoryTypeDevice = 2;      // CU_MEMORYTYPE_DEVICE

// The calls of the driver that we use, each named like the symbol it is bound to.
struct Calls {
  Result (*cuInit)(unsigned flags);
  Result (*cuGetErrorName)(Result error, const char** name);
  Result (*cuGetErrorString)(Result error, const char** text);
  Result (*cuDeviceGetCount)(int* count);
  Result (*cuDeviceGet)(Device* device, int ordinal);
  Result (*cuDeviceGetName)(char* name, int length, Device device);
  Result (*cuDeviceTotalMem_v2)(std::size_t* bytes, Device device);
  Result (*cuDevicePrimaryCtxRetain)(Context* context, Device device);
  Result (*cuDevicePrimaryCtxRelease_v2)(Device device);
  Result (*cuCtxPushCurrent_v2)(Context context);
  Result (*cuCtxPopCurrent_v2)(Context* context);
  Result (*cuMemGetInfo_v2)(std::size_t* free, std::size_t* total);
  Result (*cuMemAlloc_v2)(Pointer* pointer, std::size_t bytes);
  Result (*cuMemFree_v2)(Pointer pointer);
  Result (*cuMemHostRegister_v2)(void* memory, std::size_t bytes, unsigned flags);
  Result (*cuMemHostUnregister)(void* memory);
  Result (*cuMemcpyHtoDAsync_v2)(Pointer target, const void* source, std::size_t bytes,
                                 StreamHandle stream);
  Result (*cuMemcpyDtoH_v2)(void* target, Pointer source, std::size_t bytes);
  Result (*cuStreamCreate)(StreamHandle* stream, unsigned flags);
  Result (*cuStreamDestroy_v2)(StreamHandle stream);
  Result (*cuStreamSynchronize)(StreamHandle stream);
  Result (*cuEventCreate)(EventHandle* event, unsigned flags);
  Result (*cuEventDestroy_v2)(EventHandle event);
  Result (*cuEventRecord)(EventHandle event, StreamHandle stream);
  Result (*cuEventSynchronize)(EventHandle event);
  Result (*cuPointerGetAttribute)(void* data, int attribute, Pointer pointer);
};

}  // namespace cuda

// A driver library that is open and initialized, for as long as the process lives: a driver cannot
// be closed safely. All of it may be used from any thread.
class CudaDriver {
 public:
  // The library that the environment's BRISK_CUDA_DRIVER names, else libcuda.so.1. Opened and
  // initialized by the first call that succeeds. Throws DeviceError: what the dynamic linker says
  // if it cannot be opened, the symbol that is missing, what the driver says if it does not start;
  // also in a process that was forked after the driver had been initialized, where it cannot work.
  static const CudaDriver& get();

  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  [[nodiscard]] const cuda::Calls* operator->() const noexcept { return &calls_; }

  // Throws DeviceError with the driver's own name and text for `result`, unless it is kSuccess.
  void check(cuda::Result result, const char* call) const;

  // False in a process that was forked from the one that initialized the driver.
  [[nodiscard]] bool usable() const noexcept;

 private:
  explicit CudaDriver(const std::string& library);

  cuda::Calls calls_{};
  pid_t owner_;
};

}  // namespace brisk
