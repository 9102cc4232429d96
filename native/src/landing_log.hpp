// How far copies from host memory are: the part of a ReadJob that remains where nothing is read.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/read_job.hpp"

namespace brisk {

// `note` and `fail` are thread-safe; all else is for the thread that waits, which also runs the
// watch. Not movable.
class LandingLog {
 public:
  LandingLog(std::size_t tasks, std::vector<std::size_t> milestones, Watch watch,
             const CancelToken* cancel);

  LandingLog(const LandingLog&) = delete;
  LandingLog& operator=(const LandingLog&) = delete;

  // A task's bytes are on all its devices.
  void note(std::size_t task);
  // Ends the waiting with this error, if none came before.
  void fail(std::exception_ptr error);

  // Runs the watch once, before anything is copied.
  void begin();
  // Runs the watch if it is time. Throws what was given to `fail`, what the watch throws, and
  // Cancelled if the token was raised.
  void look();
  // Returns when all tasks are done, having run the watch. Throws as `look` does.
  void await_all();

 private:
  void run_watch(std::unique_lock<std::mutex>& lock);
  void check() const;
  [[nodiscard]] bool is_cancelled() const noexcept { return cancel_ && cancel_->cancelled(); }

  const std::vector<std::size_t> milestones_;
  const Watch watch_;
  const CancelToken* const cancel_;
  std::chrono::steady_clock::time_point last_watch_;

  std::mutex mutex_;  // guards what is below
  std::condition_variable changed_;
  std::vector<char> is_done_;
  std::size_t done_ = 0;
  std::size_t done_in_order_ = 0;
  std::size_t next_milestone_ = 0;
  bool has_news_ = false;
  std::exception_ptr failure_;
};

}  // namespace brisk
