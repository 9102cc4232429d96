// Copies from host memory to one device, beside whatever brings the bytes into that memory. No
// Python in here.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "brisk/device.hpp"

namespace brisk {

// One run of bytes, and the device address it goes to.
struct CopyPart {
  cuda::Pointer target;
  std::span<const std::byte> source;
};

// What has begun cannot be cancelled: no more batches than this are on their way at once.
inline constexpr std::size_t kBatchesInFlightMax = 32;

// Owns two threads, several streams and as many events as there are batches on their way. One
// thread hands each batch to the next stream as soon as it comes, the other waits until it is
// there.
class DeviceCopier {
 public:
  // On a thread of the copier, when the batch's bytes are on the device and their source is free.
  using Landed = std::function<void(std::size_t batch)>;
  // On a thread of the copier, at most once. No batch is begun afterwards.
  using Failed = std::function<void(std::exception_ptr error)>;

  // Throws DeviceError and std::system_error.
  DeviceCopier(SharedContext context, unsigned streams, Landed landed, Failed failed);
  // Does not begin what was not begun, waits for what was, and joins.
  ~DeviceCopier();

  DeviceCopier(const DeviceCopier&) = delete;
  DeviceCopier& operator=(const DeviceCopier&) = delete;

  // The sources must stay as they are until the batch has landed or this object is gone. Never
  // blocks; the caller bounds how many batches are under way. Thread-safe.
  void push(std::size_t batch, std::vector<CopyPart> parts);

 private:
  struct Batch {
    std::size_t number;
    std::vector<CopyPart> parts;
  };
  struct InFlight {
    std::size_t number;
    Event event;
  };

  void begin_batches() noexcept;
  void land_batches() noexcept;
  [[nodiscard]] bool begin_next();
  [[nodiscard]] bool land_oldest();
  [[nodiscard]] Event copy(const Batch& batch, std::optional<Event> spare);
  void fail(std::exception_ptr error);
  void stop();

  const SharedContext context_;
  const Landed landed_;
  const Failed failed_;

  std::mutex mutex_;  // guards what is below, down to the threads' own
  std::condition_variable changed_;
  std::deque<Batch> waiting_;
  std::deque<InFlight> in_flight_;
  std::vector<Event> spare_events_;
  bool stop_ = false;
  bool has_failed_ = false;
  bool begins_no_more_ = false;

  std::vector<Stream> streams_;  // the beginning thread's own, as is the next one
  std::size_t next_stream_ = 0;
  std::thread beginning_;
  std::thread landing_;
};

}  // namespace brisk
