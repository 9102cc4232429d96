// A flag that one thread raises and reading threads obey. No Python in here: see bindings.cpp.
#pragma once

#include <atomic>

namespace brisk {

// May be shared by any number of threads and jobs. Once raised it stays raised.
class CancelToken {
 public:
  void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool cancelled() const noexcept {
    return cancelled_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace brisk
