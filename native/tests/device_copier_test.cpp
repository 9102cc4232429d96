// DeviceCopier's promise: what is pushed lands once, beside its caller, or one failure is told.
#include "brisk/device_copier.hpp"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>

#include "brisk/page_buffer.hpp"
#include "check.hpp"
#include "scratch.hpp"
#include "standin.hpp"

namespace {

using brisk::DeviceContext;
using brisk::DeviceCopier;
using brisk::DeviceMemory;
using brisk::PageBuffer;
using brisk::SharedContext;

// What a copier told.
class Log {
 public:
  [[nodiscard]] DeviceCopier::Landed landed() {
    return [this](std::size_t batch) {
      const std::lock_guard lock(mutex_);
      seen_.insert(batch);
      changed_.notify_all();
    };
  }
  [[nodiscard]] DeviceCopier::Failed failed() {
    return [this](std::exception_ptr) {
      const std::lock_guard lock(mutex_);
      ++failures_;
      changed_.notify_all();
    };
  }
  void await_landed(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return seen_.size() >= count; });
  }
  void await_failure() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failures_ > 0; });
  }
  [[nodiscard]] std::size_t landed_count() {
    const std::lock_guard lock(mutex_);
    return seen_.size();
  }
  [[nodiscard]] int failures() {
    const std::lock_guard lock(mutex_);
    return failures_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::multiset<std::size_t> seen_;
  int failures_ = 0;
};

struct Fixture {
  static constexpr std::size_t kPart = 1000;

  [[nodiscard]] std::vector<brisk::CopyPart> part(std::size_t index) const {
    return {{.target = memory.pointer() + index * kPart,
             .source = source.bytes().subspan(index * kPart, kPart)}};
  }

  Standin standin;
  PageBuffer source{100 * kPart};
  DeviceMemory memory{std::make_shared<const DeviceContext>(0), 100 * kPart};
  Log log;
};

}  // namespace

TEST("every batch lands once, and as many copies run at once as there are streams") {
  Fixture fixture;
  DeviceCopier copier(fixture.memory.context(), 3, fixture.log.landed(), fixture.log.failed());
  standin_hold();
  for (std::size_t i = 0; i < 100; ++i) copier.push(i, fixture.part(i));
  standin_await_held(3);
  CHECK(fixture.log.landed_count() == 0);
  standin_let_go();
  fixture.log.await_landed(100);
  CHECK(Standin::audit().running_copies_max == 3 && Standin::audit().copies == 100);
  CHECK(Standin::audit().events <= brisk::kBatchesInFlightMax);
  CHECK(fixture.log.failures() == 0);
}

TEST("a failed copy is told once, and nothing lands after it") {
  Fixture fixture;
  std::optional<DeviceCopier> copier(std::in_place, fixture.memory.context(), 1,
                                     fixture.log.landed(), fixture.log.failed());
  standin_fail("copy", 2, 700);
  standin_hold();
  for (std::size_t i = 0; i < 5; ++i) copier->push(i, fixture.part(i));
  standin_let_go();
  fixture.log.await_failure();
  copier->push(5, fixture.part(5));
  copier.reset();
  CHECK(fixture.log.failures() == 1);
  // The driver tells of the failure wherever it is asked next, so the first two need not land.
  CHECK(fixture.log.landed_count() <= 2);
  CHECK(Standin::audit().copies == 2);
}

TEST("a copier that goes away waits for what it began and begins no more") {
  Fixture fixture;
  {
    DeviceCopier copier(fixture.memory.context(), 1, fixture.log.landed(), fixture.log.failed());
    standin_hold();
    for (std::size_t i = 0; i < 100; ++i) copier.push(i, fixture.part(i));
    standin_await_held(1);
    standin_let_go();
  }
  const auto copies = Standin::audit().copies;
  CHECK(copies >= 1 && Standin::audit().streams == 0 && Standin::audit().events == 0);
  CHECK(fixture.log.failures() == 0);
}
