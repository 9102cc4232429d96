#include "brisk/cuda_driver.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

namespace brisk {
namespace {

std::string last_linker_error() {
  const char* const text = ::dlerror();
  return text != nullptr ? text : "unknown error";
}

// Where a call lies in the library. Throws DeviceError for a driver that does not have it.
template <typename Function>
void bind(void* library, const char* symbol, Function*& call) {
  void* const found = ::dlsym(library, symbol);
  if (found == nullptr) throw DeviceError("dlsym", 0, "", last_linker_error());
  call = reinterpret_cast<Function*>(found);
}

void bind_all(void* library, cuda::Calls& calls) {
  bind(library, "cuInit", calls.cuInit);
  bind(library, "cuGetErrorName", calls.cuGetErrorName);
  bind(library, "cuGetErrorString", calls.cuGetErrorString);
  bind(library, "cuDeviceGetCount", calls.cuDeviceGetCount);
  bind(library, "cuDeviceGet", calls.cuDeviceGet);
  bind(library, "cuDeviceGetName", calls.cuDeviceGetName);
  bind(library, "cuDeviceTotalMem_v2", calls.cuDeviceTotalMem_v2);
  bind(library, "cuDevicePrimaryCtxRetain", calls.cuDevicePrimaryCtxRetain);
  bind(library, "cuDevicePrimaryCtxRelease_v2", calls.cuDevicePrimaryCtxRelease_v2);
  bind(library, "cuCtxPushCurrent_v2", calls.cuCtxPushCurrent_v2);
  bind(library, "cuCtxPopCurrent_v2", calls.cuCtxPopCurrent_v2);
  bind(library, "cuMemGetInfo_v2", calls.cuMemGetInfo_v2);
  bind(library, "cuMemAlloc_v2", calls.cuMemAlloc_v2);
  bind(library, "cuMemFree_v2", calls.cuMemFree_v2);
  bind(library, "cuMemHostRegister_v2", calls.cuMemHostRegister_v2);
  bind(library, "cuMemHostUnregister", calls.cuMemHostUnregister);
  bind(library, "cuMemcpyHtoDAsync_v2", calls.cuMemcpyHtoDAsync_v2);
  bind(library, "cuMemcpyDtoH_v2", calls.cuMemcpyDtoH_v2);
  bind(library, "cuStreamCreate", calls.cuStreamCreate);
  bind(library, "cuStreamDestroy_v2", calls.cuStreamDestroy_v2);
  bind(library, "cuStreamSynchronize", calls.cuStreamSynchronize);
  bind(library, "cuEventCreate", calls.cuEventCreate);
  bind(library, "cuEventDestroy_v2", calls.cuEventDestroy_v2);
  bind(library, "cuEventRecord", calls.cuEventRecord);
  bind(library, "cuEventSynchronize", calls.cuEventSynchronize);
  bind(library, "cuPointerGetAttribute", calls.cuPointerGetAttribute);
}

std::string library_name() {
  const char* const chosen = std::getenv("BRISK_CUDA_DRIVER");
  return chosen != nullptr && *chosen != '\0' ? chosen : "libcuda.so.1";
}

}  // namespace

const CudaDriver& CudaDriver::get() {
  // Neither is ever destroyed: device memory may be freed as late as the process ends.
  static auto& mutex = *new std::mutex;
  static auto& drivers = *new std::map<std::string, std::unique_ptr<const CudaDriver>>;
  const std::string library = library_name();
  const std::lock_guard lock(mutex);
  std::unique_ptr<const CudaDriver>& driver = drivers[library];
  if (!driver) driver.reset(new CudaDriver(library));
  if (!driver->usable()) {
    throw DeviceError("fork", 0, "",
                      "the CUDA driver was initialized before this process was forked, and works "
                      "only in the parent; start processes that use devices afresh");
  }
  return *driver;
}

CudaDriver::CudaDriver(const std::string& library) : owner_(::getpid()) {
  void* const handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw DeviceError("dlopen", 0, "",
                      last_linker_error() + " (BRISK_CUDA_DRIVER may name the driver's library)");
  }
  bind_all(handle, calls_);
  check(calls_.cuInit(0), "cuInit");
}

void CudaDriver::check(cuda::Result result, const char* call) const {
  if (result == cuda::kSuccess) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (calls_.cuGetErrorName(result, &name) != cuda::kSuccess) name = nullptr;
  if (calls_.cuGetErrorString(result, &text) != cuda::kSuccess) text = nullptr;
  throw DeviceError(call, result, name != nullptr ? name : "CUDA_ERROR_" + std::to_string(result),
                    text != nullptr ? text : "an error that the driver has no words for");
}

bool CudaDriver::usable() const noexcept { return ::getpid() == owner_; }

}  // namespace brisk
