// Reads ranges of many files through one queue, verified, and tells how far it is. No Python in
// here.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/read_plan.hpp"
#include "brisk/ring.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// Called on the thread that runs the job: with 0 before anything is read, then about every
// kWatchInterval, at once when the tasks done reach a milestone, and at the end of a job that
// succeeded. `tasks_done_in_order` counts the leading tasks that are done: all before it are, some
// behind it may be. May throw: that ends the job.
using Watch = std::function<void(std::uint64_t bytes_done, std::size_t tasks_done_in_order)>;
inline constexpr std::chrono::milliseconds kWatchInterval{20};

// What becomes of the bytes. Both are called on the reading threads, on several at once, with a
// task's number in the job. What they throw ends the job.
struct ReadSink {
  // Returns where the task's bytes go: memory that meets DirectFile::read's demands, and that
  // nothing else uses until the task is consumed, or the job has ended. May block until there is
  // room, if it comes free without this thread: it must have room for reads_in_flight_max reads.
  std::function<std::span<std::byte>(const ReadTask& task, std::size_t index)> place;
  // Takes the verified bytes. True: the task is done. False: someone calls `complete` for it later,
  // such as a device that still copies from the bytes.
  std::function<bool(const ReadTask& task, std::size_t index, std::span<const std::byte> bytes)>
      consume;
};

// Tasks are begun in their order, each on one thread of a fixed set. The queue is a counter up to
// the number of tasks, so it cannot grow. Not movable; to be run once.
class ReadJob {
 public:
  // `files`, what the tasks refer to and `cancel` (may be null) must outlive this object.
  // `milestones` are rising counts of tasks. Throws std::invalid_argument for tasks, options or
  // milestones that break what read_plan.hpp and this file say of them.
  ReadJob(std::span<const DirectFile> files, std::vector<ReadTask> tasks,
          const ReadOptions& options, ReadSink sink, std::vector<std::size_t> milestones = {},
          const CancelToken* cancel = nullptr, const SystemCalls& calls = {});

  ReadJob(const ReadJob&) = delete;
  ReadJob& operator=(const ReadJob&) = delete;

  // Returns when every task is done. Throws what first failed: filesystem_error, ShortRead,
  // ChecksumMismatch, what the sink or `watch` threw or `fail` was given; Cancelled if the token
  // was raised before the last task was done; std::system_error if there is no thread to be had.
  // However it ends, from then on no thread of this job touches any memory or calls the sink.
  void run(const Watch& watch);

  // Says that a task whose consume returned false is done. Thread-safe; also after the job's end.
  void complete(std::size_t index);
  // Ends the job with this error, if none came before. Thread-safe; also after the job's end.
  void fail(std::exception_ptr error);

  // What reads: the engine of the options, or pread where the kernel refused io_uring. Known from
  // the beginning.
  [[nodiscard]] Engine engine() const noexcept { return options_.engine; }
  [[nodiscard]] std::uint64_t bytes_done() const;

 private:
  void start();
  void await_end(const Watch& watch);
  void stop_and_join() noexcept;
  void open_rings(const SystemCalls& calls);
  void run_thread(unsigned thread) noexcept;
  void read_one_by_one();
  void read_with(Ring& ring);
  [[nodiscard]] bool take(std::size_t& index);
  void consume(std::size_t index, std::span<const std::byte> bytes);
  [[nodiscard]] bool is_over() const;
  [[nodiscard]] bool is_cancelled() const noexcept { return cancel_ && cancel_->cancelled(); }

  const std::span<const DirectFile> files_;
  const std::vector<ReadTask> tasks_;
  ReadOptions options_;
  const ReadSink sink_;
  const std::vector<std::size_t> milestones_;
  const CancelToken* const cancel_;

  mutable std::mutex mutex_;  // guards everything below but rings_ and threads_
  std::condition_variable changed_;
  std::size_t next_ = 0;
  std::vector<char> is_done_;      // by task
  std::size_t done_ = 0;           // tasks
  std::size_t done_in_order_ = 0;  // leading tasks
  std::uint64_t bytes_done_ = 0;
  std::size_t next_milestone_ = 0;
  bool has_news_ = false;  // a milestone was reached that the watch does not know of
  unsigned running_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;

  std::vector<std::unique_ptr<Ring>> rings_;  // one per thread, of Engine::kUring only
  std::vector<std::thread> threads_;
};

}  // namespace brisk
