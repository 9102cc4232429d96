// Devices and what is owned on them: contexts, memory, streams, events, pinned host memory. Each
// class owns one thing of the driver; giving it back never throws, whatever the driver says, and
// does nothing in a process that was forked meanwhile. No Python in here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "brisk/cuda_driver.hpp"

namespace brisk {

struct DeviceInfo {
  int ordinal;
  std::string name;
  std::uint64_t total_bytes;
};

// All devices; none if there is no driver library or it knows of no device. Makes no context.
// Throws DeviceError if there is a driver that does not work.
[[nodiscard]] std::vector<DeviceInfo> devices();

struct DeviceRoom {
  std::uint64_t free_bytes;
  std::uint64_t total_bytes;
};

// Holds the primary context of a device, which other users of the device in this process, such as
// torch, share. Any thread may use it.
class DeviceContext {
 public:
  // Throws DeviceError.
  explicit DeviceContext(int ordinal);
  ~DeviceContext();

  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  [[nodiscard]] int ordinal() const noexcept { return ordinal_; }
  [[nodiscard]] const CudaDriver& driver() const noexcept { return driver_; }
  [[nodiscard]] cuda::Context get() const noexcept { return context_; }
  // Throws DeviceError.
  [[nodiscard]] DeviceRoom room() const;

 private:
  const CudaDriver& driver_;
  int ordinal_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
};

using SharedContext = std::shared_ptr<const DeviceContext>;

// Makes a context the calling thread's own until the end of the scope, then the former one again.
class CurrentContext {
 public:
  // Throws DeviceError.
  explicit CurrentContext(const DeviceContext& context);
  ~CurrentContext();

  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

 private:
  const CudaDriver& driver_;
};

// Owns one allocation in a device's memory, with undefined contents, 256-byte aligned.
class DeviceMemory {
 public:
  // Throws DeviceMemoryError and DeviceError. `size` may be 0: then nothing is allocated.
  DeviceMemory(SharedContext context, std::uint64_t size);
  ~DeviceMemory();

  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  [[nodiscard]] const SharedContext& context() const noexcept { return context_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  // The device address; 0 if the size is 0.
  [[nodiscard]] cuda::Pointer pointer() const noexcept { return pointer_; }
  // Whether the host can use the address as its own, as the driver says of it. Never so on a GPU.
  [[nodiscard]] bool in_host_memory() const noexcept { return in_host_memory_; }

  // Copies to the host what lies from `offset` on, and returns when it is there. Throws
  // std::out_of_range and DeviceError.
  void read(std::uint64_t offset, std::span<std::byte> target) const;

 private:
  SharedContext context_;
  std::uint64_t size_;
  cuda::Pointer pointer_ = 0;
  bool in_host_memory_ = false;
};

// Memory to be had on a device.
struct DeviceAllocation {
  int ordinal;
  std::uint64_t size;
};

using SharedMemory = std::shared_ptr<const DeviceMemory>;

// Returns one memory each, or none and gives back what it had got. Throws as DeviceMemory does.
[[nodiscard]] std::vector<SharedMemory> allocate(std::span<const DeviceAllocation> allocations);

// Owns one queue of work on a device. Streams of a device run beside each other.
class Stream {
 public:
  // Throws DeviceError.
  explicit Stream(SharedContext context);
  ~Stream();

  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) = delete;

  // Begins to copy host memory to `target` behind what the stream has to do already. Memory that is
  // pinned must stay as it is until an event recorded behind the copy has come. Throws DeviceError.
  void copy(cuda::Pointer target, std::span<const std::byte> source) const;
  // Waits for all that the stream has to do; failures are not told, as in a destructor.
  void drain() const noexcept;

  [[nodiscard]] cuda::StreamHandle get() const noexcept { return stream_; }

 private:
  SharedContext context_;
  cuda::StreamHandle stream_ = nullptr;
};

// Owns a mark in a stream's work. May be used again once it has come.
class Event {
 public:
  // Throws DeviceError.
  explicit Event(SharedContext context);
  ~Event();

  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  // Puts the mark behind what the stream has to do. Throws DeviceError.
  void record(const Stream& stream) const;
  // Returns once all before the mark is done. Throws DeviceError for work that failed.
  void wait() const;

 private:
  SharedContext context_;
  cuda::EventHandle event_ = nullptr;
};

// Host memory that all devices copy from directly, for as long as this object lives.
class HostRegistration {
 public:
  // The memory must outlive this object. Throws DeviceError, for example where the system limits
  // how much memory may be pinned, or if some of it is pinned already.
  HostRegistration(SharedContext context, std::span<std::byte> memory);
  ~HostRegistration();

  HostRegistration(const HostRegistration&) = delete;
  HostRegistration& operator=(const HostRegistration&) = delete;

 private:
  SharedContext context_;
  std::byte* memory_;
};

// True if the driver knows these bytes as pinned host memory, whoever pinned them.
[[nodiscard]] bool is_pinned(const DeviceContext& context, std::span<const std::byte> memory);

}  // namespace brisk
