#include "brisk/chunk_reader.hpp"

#include <algorithm>
#include <utility>

namespace brisk {

ChunkReader::ChunkReader(const DirectFile& file, unsigned threads, Place place, Consume consume,
                         const CancelToken* cancel)
    : file_(file),
      place_(std::move(place)),
      consume_(std::move(consume)),
      cancel_(cancel),
      chunks_(chunk_count(file.size())) {
  try {
    start(static_cast<unsigned>(std::min<std::uint64_t>(threads, chunks_)));
  } catch (...) {
    stop_and_join();  // a constructor that throws gets no destructor
    throw;
  }
}

ChunkReader::~ChunkReader() { stop_and_join(); }

void ChunkReader::start(unsigned threads) {
  threads_.reserve(threads);
  for (unsigned thread = 0; thread < threads; ++thread) {
    {
      const std::lock_guard lock(mutex_);
      ++running_;
    }
    threads_.emplace_back([this, thread] { run(thread); });
  }
}

void ChunkReader::stop_and_join() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  for (auto& thread : threads_) thread.join();
}

void ChunkReader::run(unsigned thread) noexcept {
  try {
    for (std::uint64_t index = 0; take(index);) read_chunk(index, thread);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
    stop_ = true;
  }
  const std::lock_guard lock(mutex_);
  if (--running_ == 0) all_left_.notify_all();
}

bool ChunkReader::take(std::uint64_t& index) {
  const std::lock_guard lock(mutex_);
  if (stop_ || next_ == chunks_ || is_cancelled()) return false;
  index = next_++;
  return true;
}

void ChunkReader::read_chunk(std::uint64_t index, unsigned thread) {
  const std::uint64_t offset = index * kChunkBytes;
  const auto wanted =
      static_cast<std::size_t>(std::min<std::uint64_t>(kChunkBytes, file_.size() - offset));
  const std::span<std::byte> room = place_(offset, wanted, thread);
  file_.read(offset, wanted, room);
  consume_({.index = index, .offset = offset, .bytes = room.first(wanted)});
  const std::lock_guard lock(mutex_);
  bytes_done_ += wanted;
}

std::uint64_t ChunkReader::bytes_done() const {
  const std::lock_guard lock(mutex_);
  return bytes_done_;
}

void ChunkReader::wait(const Watch& watch) {
  std::unique_lock lock(mutex_);
  const auto left = [this] { return running_ == 0; };
  while (!all_left_.wait_for(lock, kWatchInterval, left)) {
    const std::uint64_t done = bytes_done_;
    lock.unlock();
    if (watch) watch(done);
    lock.lock();
  }
  if (failure_) std::rethrow_exception(failure_);
  if (bytes_done_ < file_.size() || (chunks_ == 0 && is_cancelled())) throw Cancelled(bytes_done_);
  lock.unlock();
  if (watch) watch(file_.size());
}

}  // namespace brisk
