#include "landing_log.hpp"

#include <utility>

#include "brisk/errors.hpp"

namespace brisk {

LandingLog::LandingLog(std::size_t tasks, std::vector<std::size_t> milestones, Watch watch,
                       const CancelToken* cancel)
    : milestones_(std::move(milestones)),
      watch_(std::move(watch)),
      cancel_(cancel),
      is_done_(tasks, 0) {}

void LandingLog::note(std::size_t task) {
  const std::lock_guard lock(mutex_);
  is_done_.at(task) = 1;
  ++done_;
  while (done_in_order_ < is_done_.size() && is_done_[done_in_order_] != 0) ++done_in_order_;
  while (next_milestone_ < milestones_.size() && milestones_[next_milestone_] <= done_in_order_) {
    ++next_milestone_;
    has_news_ = true;
  }
  if (has_news_ || done_ == is_done_.size()) changed_.notify_all();
}

void LandingLog::fail(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  if (!failure_) failure_ = std::move(error);
  changed_.notify_all();
}

void LandingLog::begin() {
  std::unique_lock lock(mutex_);
  run_watch(lock);
}

void LandingLog::look() {
  std::unique_lock lock(mutex_);
  check();
  const auto now = std::chrono::steady_clock::now();
  if (has_news_ || now - last_watch_ >= kWatchInterval) run_watch(lock);
}

void LandingLog::await_all() {
  std::unique_lock lock(mutex_);
  if (is_done_.empty()) check();
  while (done_ < is_done_.size()) {
    check();
    changed_.wait_for(lock, kWatchInterval, [this] {
      return has_news_ || failure_ != nullptr || done_ == is_done_.size();
    });
    if (done_ < is_done_.size() && !failure_) run_watch(lock);
  }
  if (failure_) std::rethrow_exception(failure_);
  run_watch(lock);
}

void LandingLog::run_watch(std::unique_lock<std::mutex>& lock) {
  has_news_ = false;
  last_watch_ = std::chrono::steady_clock::now();
  const std::size_t in_order = done_in_order_;
  lock.unlock();
  if (watch_) watch_(0, in_order);
  lock.lock();
}

void LandingLog::check() const {
  if (failure_) std::rethrow_exception(failure_);
  if (is_cancelled()) throw Cancelled(0);
}

}  // namespace brisk
