#include "brisk/device_copier.hpp"

#include <utility>

namespace brisk {

DeviceCopier::DeviceCopier(SharedContext context, unsigned streams, Landed landed, Failed failed)
    : context_(std::move(context)), landed_(std::move(landed)), failed_(std::move(failed)) {
  streams_.reserve(streams);
  for (unsigned i = 0; i < streams; ++i) streams_.emplace_back(context_);
  landing_ = std::thread([this] { land_batches(); });
  try {
    beginning_ = std::thread([this] { begin_batches(); });
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      begins_no_more_ = true;
      changed_.notify_all();
    }
    landing_.join();
    throw;
  }
}

DeviceCopier::~DeviceCopier() {
  stop();
  beginning_.join();
  landing_.join();
  // After a failure the device may still read from memory that is about to be given back.
  for (const Stream& stream : streams_) stream.drain();
}

void DeviceCopier::push(std::size_t batch, std::vector<CopyPart> parts) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back({.number = batch, .parts = std::move(parts)});
  changed_.notify_all();
}

void DeviceCopier::begin_batches() noexcept {
  try {
    const CurrentContext current(*context_);
    while (begin_next()) {
    }
  } catch (...) {
    fail(std::current_exception());
  }
  const std::lock_guard lock(mutex_);
  begins_no_more_ = true;
  changed_.notify_all();
}

// Returns false once stopped.
bool DeviceCopier::begin_next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] {
    return stop_ || (!waiting_.empty() && in_flight_.size() < kBatchesInFlightMax);
  });
  if (stop_) return false;
  const Batch batch = std::move(waiting_.front());
  waiting_.pop_front();
  std::optional<Event> spare;
  if (!spare_events_.empty()) {
    spare = std::move(spare_events_.back());
    spare_events_.pop_back();
  }
  lock.unlock();
  Event event = copy(batch, std::move(spare));
  lock.lock();
  in_flight_.push_back({.number = batch.number, .event = std::move(event)});
  changed_.notify_all();
  return true;
}

// Begins the copies of a batch and returns the event that comes behind them.
Event DeviceCopier::copy(const Batch& batch, std::optional<Event> spare) {
  const Stream& stream = streams_[next_stream_];
  next_stream_ = (next_stream_ + 1) % streams_.size();
  for (const CopyPart& part : batch.parts) stream.copy(part.target, part.source);
  Event event = spare ? std::move(*spare) : Event(context_);
  event.record(stream);
  return event;
}

void DeviceCopier::land_batches() noexcept {
  try {
    const CurrentContext current(*context_);
    while (land_oldest()) {
    }
  } catch (...) {
    fail(std::current_exception());
  }
}

// Returns false once there is nothing on its way and never will be.
bool DeviceCopier::land_oldest() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return begins_no_more_ || !in_flight_.empty(); });
  if (in_flight_.empty()) return false;
  InFlight& oldest = in_flight_.front();  // stays where it is while others come behind it
  lock.unlock();
  oldest.event.wait();
  lock.lock();
  const std::size_t number = oldest.number;
  spare_events_.push_back(std::move(oldest.event));
  in_flight_.pop_front();
  changed_.notify_all();
  lock.unlock();
  landed_(number);
  return true;
}

void DeviceCopier::fail(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(has_failed_, true)) return;
  }
  stop();
  failed_(std::move(error));
}

void DeviceCopier::stop() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  changed_.notify_all();
}

}  // namespace brisk
