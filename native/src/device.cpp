#include "brisk/device.hpp"

#include <array>
#include <map>
#include <stdexcept>
#include <utility>

namespace brisk {
namespace {

// Calls into the driver with a device's context, where nobody can be told of an error: what is
// given back in a destructor. Does nothing where the driver cannot work.
template <typename Action>
void quietly(const DeviceContext& context, const Action& action) noexcept {
  if (!context.driver().usable()) return;
  try {
    const CurrentContext current(context);
    action();
  } catch (const DeviceError&) {
    // The context is gone, and what it owned went with it.
  }
}

DeviceInfo describe(const CudaDriver& driver, int ordinal) {
  cuda::Device device = 0;
  driver.check(driver->cuDeviceGet(&device, ordinal), "cuDeviceGet");
  std::array<char, 256> name{};
  driver.check(driver->cuDeviceGetName(name.data(), static_cast<int>(name.size()) - 1, device),
               "cuDeviceGetName");
  std::size_t total = 0;
  driver.check(driver->cuDeviceTotalMem_v2(&total, device), "cuDeviceTotalMem_v2");
  return {.ordinal = ordinal, .name = name.data(), .total_bytes = total};
}

// The type of memory that the driver takes an address for; 0 if it does not know it.
unsigned memory_type(const CudaDriver& driver, cuda::Pointer pointer) noexcept {
  unsigned type = 0;
  const cuda::Result result =
      driver->cuPointerGetAttribute(&type, cuda::kPointerMemoryType, pointer);
  return result == cuda::kSuccess ? type : 0;
}

cuda::Pointer address_of(const std::byte* byte) {
  return static_cast<cuda::Pointer>(reinterpret_cast<std::uintptr_t>(byte));
}

}  // namespace

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> found;
  try {
    const CudaDriver& driver = CudaDriver::get();
    int count = 0;
    driver.check(driver->cuDeviceGetCount(&count), "cuDeviceGetCount");
    for (int ordinal = 0; ordinal < count; ++ordinal) found.push_back(describe(driver, ordinal));
  } catch (const DeviceError& error) {
    if (error.call() != "dlopen" && error.code() != cuda::kNoDevice) throw;
  }
  return found;
}

DeviceContext::DeviceContext(int ordinal) : driver_(CudaDriver::get()), ordinal_(ordinal) {
  driver_.check(driver_->cuDeviceGet(&device_, ordinal), "cuDeviceGet");
  driver_.check(driver_->cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

DeviceContext::~DeviceContext() {
  if (driver_.usable()) driver_->cuDevicePrimaryCtxRelease_v2(device_);
}

DeviceRoom DeviceContext::room() const {
  const CurrentContext current(*this);
  std::size_t free = 0;
  std::size_t total = 0;
  driver_.check(driver_->cuMemGetInfo_v2(&free, &total), "cuMemGetInfo_v2");
  return {.free_bytes = free, .total_bytes = total};
}

CurrentContext::CurrentContext(const DeviceContext& context) : driver_(context.driver()) {
  driver_.check(driver_->cuCtxPushCurrent_v2(context.get()), "cuCtxPushCurrent_v2");
}

CurrentContext::~CurrentContext() {
  cuda::Context former = nullptr;
  driver_->cuCtxPopCurrent_v2(&former);
}

DeviceMemory::DeviceMemory(SharedContext context, std::uint64_t size)
    : context_(std::move(context)), size_(size) {
  if (size == 0) return;
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  try {
    driver.check(driver->cuMemAlloc_v2(&pointer_, size), "cuMemAlloc_v2");
  } catch (const DeviceError& error) {
    if (error.code() != cuda::kOutOfMemory) throw;
    throw DeviceMemoryError(error, context_->ordinal(), size, context_->room().free_bytes);
  }
  in_host_memory_ = memory_type(driver, pointer_) == cuda::kMemoryTypeHost;
}

DeviceMemory::~DeviceMemory() {
  if (pointer_ == 0) return;
  quietly(*context_, [this] { context_->driver()->cuMemFree_v2(pointer_); });
}

void DeviceMemory::read(std::uint64_t offset, std::span<std::byte> target) const {
  if (offset > size_ || target.size() > size_ - offset) {
    throw std::out_of_range("the device memory ends after " + std::to_string(size_) + " bytes");
  }
  if (target.empty()) return;
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(driver->cuMemcpyDtoH_v2(target.data(), pointer_ + offset, target.size()),
               "cuMemcpyDtoH_v2");
}

std::vector<SharedMemory> allocate(std::span<const DeviceAllocation> allocations) {
  std::map<int, SharedContext> contexts;  // by ordinal
  std::vector<SharedMemory> memory;
  memory.reserve(allocations.size());
  for (const DeviceAllocation& allocation : allocations) {
    SharedContext& context = contexts[allocation.ordinal];
    if (!context) context = std::make_shared<const DeviceContext>(allocation.ordinal);
    memory.push_back(std::make_shared<const DeviceMemory>(context, allocation.size));
  }
  return memory;
}

Stream::Stream(SharedContext context) : context_(std::move(context)) {
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(driver->cuStreamCreate(&stream_, cuda::kStreamNonBlocking), "cuStreamCreate");
}

Stream::~Stream() {
  if (stream_ == nullptr) return;
  quietly(*context_, [this] { context_->driver()->cuStreamDestroy_v2(stream_); });
}

Stream::Stream(Stream&& other) noexcept
    : context_(std::move(other.context_)), stream_(std::exchange(other.stream_, nullptr)) {}

void Stream::copy(cuda::Pointer target, std::span<const std::byte> source) const {
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(driver->cuMemcpyHtoDAsync_v2(target, source.data(), source.size(), stream_),
               "cuMemcpyHtoDAsync_v2");
}

void Stream::drain() const noexcept {
  quietly(*context_, [this] { context_->driver()->cuStreamSynchronize(stream_); });
}

Event::Event(SharedContext context) : context_(std::move(context)) {
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(driver->cuEventCreate(&event_, cuda::kEventBlockingSync | cuda::kEventDisableTiming),
               "cuEventCreate");
}

Event::~Event() {
  if (event_ == nullptr) return;
  quietly(*context_, [this] { context_->driver()->cuEventDestroy_v2(event_); });
}

Event::Event(Event&& other) noexcept
    : context_(std::move(other.context_)), event_(std::exchange(other.event_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(context_, other.context_);
  std::swap(event_, other.event_);
  return *this;
}

void Event::record(const Stream& stream) const {
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(driver->cuEventRecord(event_, stream.get()), "cuEventRecord");
}

void Event::wait() const {
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(driver->cuEventSynchronize(event_), "cuEventSynchronize");
}

HostRegistration::HostRegistration(SharedContext context, std::span<std::byte> memory)
    : context_(std::move(context)), memory_(memory.data()) {
  const CudaDriver& driver = context_->driver();
  const CurrentContext current(*context_);
  driver.check(
      driver->cuMemHostRegister_v2(memory.data(), memory.size(), cuda::kHostRegisterPortable),
      "cuMemHostRegister_v2");
}

HostRegistration::~HostRegistration() {
  quietly(*context_, [this] { context_->driver()->cuMemHostUnregister(memory_); });
}

bool is_pinned(const DeviceContext& context, std::span<const std::byte> memory) {
  if (memory.empty()) return false;
  const CudaDriver& driver = context.driver();
  const CurrentContext current(context);
  return memory_type(driver, address_of(memory.data())) == cuda::kMemoryTypeHost &&
         memory_type(driver, address_of(&memory.back())) == cuda::kMemoryTypeHost;
}

}  // namespace brisk
