// Our own declarations of the driver's calls, held against NVIDIA's header. Compiled only where
// that header is; whoever has it proves it for all others.
#include <cuda.h>

#include <type_traits>

#include "brisk/cuda_driver.hpp"

namespace {

// How an argument is passed: what two declarations must agree on to call each other.
template <typename T>
using Passed = std::integral_constant<std::size_t, sizeof(T) + (std::is_pointer_v<T> ? 100 : 0)>;

template <typename Function>
struct Shape;
template <typename Result, typename... Arguments>
struct Shape<Result (*)(Arguments...)> {
  using type = Passed<Result> (*)(Passed<Arguments>...);
};

}  // namespace

#define SAME_SHAPE(call)                                     \
  static_assert(std::is_same_v<Shape<decltype(&call)>::type, \
                               Shape<decltype(brisk::cuda::Calls::call)>::type>)
SAME_SHAPE(cuInit);
SAME_SHAPE(cuGetErrorName);
SAME_SHAPE(cuGetErrorString);
SAME_SHAPE(cuDeviceGetCount);
SAME_SHAPE(cuDeviceGet);
SAME_SHAPE(cuDeviceGetName);
SAME_SHAPE(cuDeviceTotalMem_v2);
SAME_SHAPE(cuDevicePrimaryCtxRetain);
SAME_SHAPE(cuDevicePrimaryCtxRelease_v2);
SAME_SHAPE(cuCtxPushCurrent_v2);
SAME_SHAPE(cuCtxPopCurrent_v2);
SAME_SHAPE(cuMemGetInfo_v2);
SAME_SHAPE(cuMemAlloc_v2);
SAME_SHAPE(cuMemFree_v2);
SAME_SHAPE(cuMemHostRegister_v2);
SAME_SHAPE(cuMemHostUnregister);
SAME_SHAPE(cuMemcpyHtoDAsync_v2);
SAME_SHAPE(cuMemcpyDtoH_v2);
SAME_SHAPE(cuStreamCreate);
SAME_SHAPE(cuStreamDestroy_v2);
SAME_SHAPE(cuStreamSynchronize);
SAME_SHAPE(cuEventCreate);
SAME_SHAPE(cuEventDestroy_v2);
SAME_SHAPE(cuEventRecord);
SAME_SHAPE(cuEventSynchronize);
SAME_SHAPE(cuPointerGetAttribute);

static_assert(std::is_same_v<CUdeviceptr, brisk::cuda::Pointer>);
static_assert(CUDA_ERROR_INVALID_VALUE == brisk::cuda::kInvalidValue);
static_assert(CUDA_ERROR_OUT_OF_MEMORY == brisk::cuda::kOutOfMemory);
static_assert(CUDA_ERROR_NOT_INITIALIZED == brisk::cuda::kNotInitialized);
static_assert(CUDA_ERROR_NO_DEVICE == brisk::cuda::kNoDevice);
static_assert(CUDA_ERROR_INVALID_DEVICE == brisk::cuda::kInvalidDevice);
static_assert(CUDA_ERROR_INVALID_CONTEXT == brisk::cuda::kInvalidContext);
static_assert(CUDA_ERROR_INVALID_HANDLE == brisk::cuda::kInvalidHandle);
static_assert(CUDA_ERROR_ILLEGAL_ADDRESS == brisk::cuda::kIllegalAddress);
static_assert(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED ==
              brisk::cuda::kHostMemoryAlreadyRegistered);
static_assert(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED == brisk::cuda::kHostMemoryNotRegistered);
static_assert(CU_STREAM_NON_BLOCKING == brisk::cuda::kStreamNonBlocking);
static_assert(CU_EVENT_BLOCKING_SYNC == brisk::cuda::kEventBlockingSync);
static_assert(CU_EVENT_DISABLE_TIMING == brisk::cuda::kEventDisableTiming);
static_assert(CU_MEMHOSTREGISTER_PORTABLE == brisk::cuda::kHostRegisterPortable);
static_assert(CU_POINTER_ATTRIBUTE_MEMORY_TYPE == brisk::cuda::kPointerMemoryType);
static_assert(CU_MEMORYTYPE_HOST == brisk::cuda::kMemoryTypeHost);
static_assert(CU_MEMORYTYPE_DEVICE == brisk::cuda::kMemoryTypeDevice);
