#include "brisk/read_job.hpp"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "brisk/counters.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/own_code.hpp"

namespace brisk {
namespace {

bool is_sound(const ReadTask& task, std::span<const DirectFile> files, std::size_t read_bytes) {
  if (task.file >= files.size() || task.size == 0 || task.size > read_bytes) return false;
  const std::uint64_t file_bytes = files[task.file].size();
  if (task.offset % kChunkBytes != 0 || task.offset > file_bytes) return false;
  if (task.size > file_bytes - task.offset) return false;
  const bool is_last = task.size == file_bytes - task.offset;
  if (!is_last && task.size % kChunkBytes != 0) return false;
  return task.expected.empty() || task.expected.size() == task.chunks();
}

void check(std::span<const DirectFile> files, std::span<const ReadTask> tasks,
           const ReadOptions& options, std::span<const std::size_t> milestones) {
  check(options);
  for (std::size_t index = 0; index < tasks.size(); ++index) {
    if (is_sound(tasks[index], files, options.read_bytes)) continue;
    throw std::invalid_argument("read " + std::to_string(index) + " does not fit its file");
  }
  if (!std::is_sorted(milestones.begin(), milestones.end()) ||
      (!milestones.empty() && milestones.back() > tasks.size())) {
    throw std::invalid_argument("milestones must rise up to the number of reads");
  }
}

std::string hex(std::uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

void verify(const ReadTask& task, const DirectFile& file, std::span<const std::byte> bytes) {
  for (std::size_t i = 0; i < task.expected.size(); ++i) {
    const std::size_t begin = i * kChunkBytes;
    const std::uint32_t actual =
        crc32c(bytes.subspan(begin, std::min(kChunkBytes, bytes.size() - begin)));
    if (actual == task.expected[i]) continue;
    throw ChecksumMismatch(file.path(), task.offset / kChunkBytes + i,
                           "crc32c is " + hex(actual) + ", expected " + hex(task.expected[i]));
  }
}

}  // namespace

ReadJob::ReadJob(std::span<const DirectFile> files, std::vector<ReadTask> tasks,
                 const ReadOptions& options, ReadSink sink, std::vector<std::size_t> milestones,
                 const CancelToken* cancel, const SystemCalls& calls)
    : files_(files),
      tasks_(std::move(tasks)),
      options_(options),
      sink_(std::move(sink)),
      milestones_(std::move(milestones)),
      cancel_(cancel),
      is_done_(tasks_.size(), 0) {
  check(files_, tasks_, options_, milestones_);
  if (options_.engine == Engine::kUring) open_rings(calls);
}

void ReadJob::open_rings(const SystemCalls& calls) {
  const std::size_t threads = std::min<std::size_t>(options_.threads, tasks_.size());
  while (rings_.size() < threads) {
    std::error_code refusal;
    std::unique_ptr<Ring> ring = calls.open_ring(options_.depth, refusal);
    if (!ring) break;  // fewer threads do as well
    rings_.push_back(std::move(ring));
  }
  if (rings_.size() == threads) return;
  if (!rings_.empty()) {
    options_.threads = static_cast<unsigned>(rings_.size());
    return;
  }
  // A thread for each read that the ring would have in flight, as far as that pays.
  constexpr unsigned kThreads = 16;
  const unsigned most = std::min(kThreadsMax, reads_in_flight_max(options_));
  options_.threads = std::max(options_.threads, std::min(kThreads, most));
  options_.engine = Engine::kPread;
}

void ReadJob::run(const Watch& watch) {
  // Nothing is read yet: what the watch does now, such as cancelling, holds for the first task.
  if (watch) watch(0, 0);
  fault_in_own_code();
  try {
    start();
    await_end(watch);
  } catch (...) {
    stop_and_join();
    throw;
  }
  stop_and_join();
  const bool was_refused = tasks_.empty() && is_cancelled();
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    if (done_ < tasks_.size() || was_refused) throw Cancelled(bytes_done_);
  }
  if (watch) watch(bytes_done_, tasks_.size());
}

void ReadJob::start() {
  const auto threads =
      static_cast<unsigned>(std::min<std::size_t>(options_.threads, tasks_.size()));
  threads_.reserve(threads);
  for (unsigned i = 0; i < threads; ++i) {
    {
      const std::lock_guard lock(mutex_);
      ++running_;
    }
    try {
      threads_.emplace_back([this, i] { run_thread(i); });
    } catch (...) {
      const std::lock_guard lock(mutex_);
      --running_;
      throw;
    }
  }
}

void ReadJob::await_end(const Watch& watch) {
  std::unique_lock lock(mutex_);
  while (!is_over()) {
    changed_.wait_for(lock, kWatchInterval, [this] { return is_over() || has_news_; });
    if (is_over()) return;
    has_news_ = false;
    const std::uint64_t bytes = bytes_done_;
    const std::size_t in_order = done_in_order_;
    lock.unlock();
    if (watch) watch(bytes, in_order);
    lock.lock();
  }
}

bool ReadJob::is_over() const {
  if (running_ > 0) return false;
  return done_ == tasks_.size() || stop_ || is_cancelled();
}

void ReadJob::stop_and_join() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

void ReadJob::run_thread(unsigned thread) noexcept {
  try {
    if (rings_.empty()) {
      read_one_by_one();
    } else {
      read_with(*rings_[thread]);
    }
  } catch (...) {
    fail(std::current_exception());
  }
  // Waits for the reads that the kernel still has: their memory may go when this thread has left.
  if (!rings_.empty()) rings_[thread].reset();
  const std::lock_guard lock(mutex_);
  if (--running_ == 0) changed_.notify_all();
}

void ReadJob::read_one_by_one() {
  for (std::size_t index = 0; take(index);) {
    const ReadTask& task = tasks_[index];
    const std::span<std::byte> room = sink_.place(task, index);
    files_[task.file].read(task.offset, task.size, room);
    consume(index, room.first(task.size));
  }
}

void ReadJob::read_with(Ring& ring) {
  struct Slot {
    std::size_t index;
    std::span<std::byte> room;
    PendingRead read;
  };
  std::vector<std::optional<Slot>> slots(options_.depth);
  std::vector<std::uint32_t> unused;
  for (std::uint32_t tag = options_.depth; tag > 0; --tag) unused.push_back(tag - 1);
  const auto submit = [&](std::uint32_t tag) {
    const PendingRead& read = slots[tag]->read;
    ring.submit(read.file().fd(), read.next_offset(), read.next_room(), tag);
  };
  for (;;) {
    for (std::size_t index = 0; !unused.empty() && take(index);) {
      const ReadTask& task = tasks_[index];
      const std::span<std::byte> room = sink_.place(task, index);
      const std::uint32_t tag = unused.back();
      slots[tag].emplace(
          Slot{index, room, PendingRead(files_[task.file], task.offset, task.size, room)});
      unused.pop_back();
      submit(tag);
    }
    if (unused.size() == slots.size()) return;
    const auto [tag, result] = ring.wait();
    if (!slots.at(tag)->read.advance(result)) {
      submit(tag);
      continue;
    }
    const Slot done = *slots[tag];
    slots[tag].reset();
    unused.push_back(tag);
    consume(done.index, done.room.first(tasks_[done.index].size));
  }
}

bool ReadJob::take(std::size_t& index) {
  const std::lock_guard lock(mutex_);
  if (stop_ || next_ == tasks_.size() || is_cancelled()) return false;
  index = next_++;
  return true;
}

void ReadJob::consume(std::size_t index, std::span<const std::byte> bytes) {
  const ReadTask& task = tasks_[index];
  verify(task, files_[task.file], bytes);
  const DirectFile& file = files_[task.file];
  count({.direct_bytes = file.direct() ? task.size : 0,
         .buffered_bytes = file.direct() ? 0 : task.size,
         .uring_bytes = options_.engine == Engine::kUring ? task.size : 0,
         .verified_bytes = task.expected.empty() ? 0 : task.size});
  if (sink_.consume(task, index, bytes)) complete(index);
}

void ReadJob::complete(std::size_t index) {
  const std::lock_guard lock(mutex_);
  if (is_done_.at(index) != 0) return;
  is_done_[index] = 1;
  ++done_;
  bytes_done_ += tasks_[index].size;
  while (done_in_order_ < tasks_.size() && is_done_[done_in_order_] != 0) ++done_in_order_;
  while (next_milestone_ < milestones_.size() && milestones_[next_milestone_] <= done_in_order_) {
    ++next_milestone_;
    has_news_ = true;
  }
  if (has_news_ || done_ == tasks_.size()) changed_.notify_all();
}

void ReadJob::fail(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  if (!failure_) failure_ = std::move(error);
  stop_ = true;
  changed_.notify_all();
}

std::uint64_t ReadJob::bytes_done() const {
  const std::lock_guard lock(mutex_);
  return bytes_done_;
}

}  // namespace brisk
