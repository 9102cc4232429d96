// ReadJob's promise: every task once and verified, the first failure out, a stop within one read,
// and the truth about how far it is.
#include "brisk/read_job.hpp"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/page_buffer.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::CancelToken;
using brisk::DirectFile;
using brisk::kChunkBytes;
using brisk::PageBuffer;
using brisk::ReadJob;
using brisk::ReadOptions;
using brisk::ReadSink;
using brisk::ReadTask;

// Lets threads through only once it is open.
class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void await_waiting(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

// Opens the gate when the thread that owns this object ends.
struct OpenAtExit {
  ~OpenAtExit() { gate->open(); }
  Gate* gate = nullptr;
};

// Sparse files of so many chunks each, and memory for all of them.
struct Fixture {
  explicit Fixture(const std::vector<std::size_t>& chunks) : memory(total(chunks) * kChunkBytes) {
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      const auto path = folder / std::to_string(i).c_str();
      scratch::write(path, {});
      std::filesystem::resize_file(path, chunks[i] * kChunkBytes);
      files.emplace_back(path);
      append_whole_file(tasks, static_cast<std::uint32_t>(i), files[i].size(), kChunkBytes);
    }
  }

  static std::size_t total(const std::vector<std::size_t>& chunks) {
    std::size_t sum = 0;
    for (const std::size_t count : chunks) sum += count;
    return sum;
  }

  using Consume = std::function<bool(std::size_t index)>;
  ReadSink sink(const Consume& consume) {
    return {.place =
                [this](const ReadTask& task, std::size_t index) {
                  return memory.room().subspan(index * kChunkBytes, task.size);
                },
            .consume = [consume](const ReadTask&, std::size_t index,
                                 std::span<const std::byte>) { return consume(index); }};
  }

  scratch::Folder folder;
  PageBuffer memory;
  std::vector<DirectFile> files;
  std::vector<ReadTask> tasks;
};

constexpr ReadOptions kFour{.threads = 4};
constexpr ReadOptions kOne{.threads = 1};

}  // namespace

TEST("every task of every file is consumed once, without a stop between the files") {
  Fixture fixture({9, 0, 1, 13});
  std::mutex mutex;
  std::multiset<std::size_t> seen;
  ReadJob job(fixture.files, fixture.tasks, kFour, fixture.sink([&](std::size_t index) {
    const std::lock_guard lock(mutex);
    seen.insert(index);
    return true;
  }));
  std::vector<std::pair<std::uint64_t, std::size_t>> reported;
  job.run([&](std::uint64_t bytes, std::size_t tasks) { reported.emplace_back(bytes, tasks); });
  CHECK(seen.size() == 23 && std::set(seen.begin(), seen.end()).size() == 23);
  CHECK(std::is_sorted(reported.begin(), reported.end()));
  CHECK(reported.front() == std::make_pair(std::uint64_t{0}, std::size_t{0}));
  CHECK(reported.back() == std::make_pair(std::uint64_t{23 * kChunkBytes}, std::size_t{23}));
  CHECK(job.bytes_done() == 23 * kChunkBytes);
}

TEST("tasks are begun in the order they are listed in") {
  Fixture fixture({3, 3});
  std::swap(fixture.tasks[0], fixture.tasks[5]);
  std::vector<std::pair<std::uint32_t, std::uint64_t>> placed;
  ReadSink sink = fixture.sink([](std::size_t) { return true; });
  sink.place = [&, place = sink.place](const ReadTask& task, std::size_t index) {
    placed.emplace_back(task.file, task.offset / kChunkBytes);
    return place(task, index);
  };
  ReadJob(fixture.files, fixture.tasks, kOne, sink).run({});
  const std::vector<std::pair<std::uint32_t, std::uint64_t>> expected = {{1, 2}, {0, 1}, {0, 2},
                                                                         {1, 0}, {1, 1}, {0, 0}};
  CHECK(placed == expected);
}

TEST("each chunk of a read is verified, and a wrong one is named with file and offset") {
  const scratch::Folder folder;
  const auto content = scratch::noise(5 * kChunkBytes + 99);
  scratch::write(folder / "f", content);
  std::vector<DirectFile> files;
  files.emplace_back(folder / "f");
  const PageBuffer memory(content.size());
  for (int wrong = -1; wrong < 6; ++wrong) {
    std::vector<std::uint32_t> expected;
    for (std::size_t at = 0; at < content.size(); at += kChunkBytes) {
      const auto rest = std::span(content).subspan(at);
      expected.push_back(brisk::crc32c(rest.first(std::min(kChunkBytes, rest.size()))));
    }
    if (wrong >= 0) expected[static_cast<std::size_t>(wrong)] ^= 1;
    std::vector<ReadTask> tasks;
    append_whole_file(tasks, 0, content.size(), 2 * kChunkBytes, expected);
    CHECK(tasks.size() == 3);
    ReadSink sink{.place =
                      [&](const ReadTask& task, std::size_t) {
                        return memory.room().subspan(task.offset, brisk::align_up(task.size, 4096));
                      },
                  .consume = [](const ReadTask&, std::size_t, auto) { return true; }};
    ReadJob job(files, tasks, {.threads = 2, .read_bytes = 2 * kChunkBytes}, sink);
    try {
      job.run({});
      CHECK(wrong < 0);
      CHECK(scratch::equal(memory.bytes(), content));
    } catch (const brisk::ChecksumMismatch& error) {
      CHECK(wrong >= 0 && error.chunk() == static_cast<std::uint64_t>(wrong));
      CHECK(error.path() == folder / "f");
    }
  }
}

TEST("the job waits for tasks that are completed later, in any order, and by other threads") {
  Fixture fixture({0, 6});
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::size_t> pending;
  ReadJob job(fixture.files, fixture.tasks, kFour, fixture.sink([&](std::size_t index) {
    const std::lock_guard lock(mutex);
    pending.push_back(index);
    changed.notify_all();
    return false;
  }),
              {1, 3, 6});
  std::vector<std::size_t> reported;
  std::thread other([&] {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return pending.size() == 6; });
    lock.unlock();
    CHECK(job.bytes_done() == 0);
    for (const std::size_t index : {5, 4, 3, 2, 1, 0, 0}) job.complete(index);
  });
  job.run([&](std::uint64_t, std::size_t tasks) { reported.push_back(tasks); });
  other.join();
  CHECK(std::set(reported.begin(), reported.end()) == (std::set<std::size_t>{0, 6}));
}

TEST("milestones are told in order, each at once, while later tasks are still to come") {
  Fixture fixture({8});
  Gate third;
  Gate sixth;
  ReadJob job(fixture.files, fixture.tasks, kOne, fixture.sink([&](std::size_t index) {
    // The next task goes on only when the milestone before it was told.
    if (index == 2) third.pass();
    if (index == 5) sixth.pass();
    return true;
  }),
              {2, 5});
  std::vector<std::size_t> reported;
  job.run([&](std::uint64_t, std::size_t tasks) {
    if (reported.empty() || reported.back() != tasks) reported.push_back(tasks);
    if (tasks == 2) third.open();
    if (tasks == 5) sixth.open();
  });
  CHECK(std::find(reported.begin(), reported.end(), 2U) != reported.end());
  CHECK(std::find(reported.begin(), reported.end(), 5U) != reported.end());
  CHECK(std::is_sorted(reported.begin(), reported.end()) && reported.back() == 8);
}

TEST("a task that is done early does not count as done in order") {
  Fixture fixture({4});
  Gate gate;
  std::atomic<std::size_t> highest{0};
  ReadJob job(fixture.files, fixture.tasks, {.threads = 2}, fixture.sink([&](std::size_t index) {
    if (index == 0) gate.pass();
    if (index == 3) gate.open();
    return true;
  }),
              {1, 2, 3, 4});
  job.run([&](std::uint64_t bytes, std::size_t tasks) {
    CHECK(tasks == 0 || tasks >= 3);
    CHECK(bytes >= tasks * kChunkBytes);
    highest = tasks;
  });
  CHECK(highest == 4);
}

TEST("an error that another thread reports ends the job, whether reads are left or not") {
  for (const std::size_t failing : {0, 3}) {
    Fixture fixture({4});
    std::thread other;
    ReadJob* running = nullptr;
    ReadJob job(fixture.files, fixture.tasks, kOne, fixture.sink([&](std::size_t index) {
      if (index == failing) {
        other = std::thread([&] {
          running->fail(std::make_exception_ptr(std::range_error("device")));
          running->fail(std::make_exception_ptr(std::logic_error("too late")));
        });
      }
      return index < failing;
    }));
    running = &job;
    CHECK_THROWS(std::range_error, job.run({}));
    other.join();
    CHECK(job.bytes_done() == failing * kChunkBytes);
    job.complete(3);  // a copy that ends late touches nothing that is gone
  }
}

TEST("cancelling ends a job that only waits for late completions") {
  Fixture fixture({2});
  CancelToken cancel;
  ReadJob job(fixture.files, fixture.tasks, kOne, fixture.sink([&](std::size_t index) {
    if (index == 1) cancel.cancel();
    return false;
  }),
              {}, &cancel);
  CHECK_THROWS(brisk::Cancelled, job.run({}));
}

TEST("after cancelling no further task is begun, only those in hand end") {
  Fixture fixture({40});
  Gate gate;
  CancelToken cancel;
  std::atomic<int> begun{0};
  ReadJob job(fixture.files, fixture.tasks, kFour, fixture.sink([&](std::size_t) {
    ++begun;
    gate.pass();
    return true;
  }),
              {}, &cancel);
  std::thread other([&] {
    gate.await_waiting(4);
    cancel.cancel();
    gate.open();
  });
  CHECK_THROWS(brisk::Cancelled, job.run({}));
  other.join();
  CHECK(begun == 4);
  CHECK(job.bytes_done() == 4 * kChunkBytes);
}

TEST("a token raised beforehand or at the start reads nothing, and no task is no exception") {
  for (const std::size_t chunks : {0, 5}) {
    for (const bool beforehand : {true, false}) {
      Fixture fixture({chunks});
      CancelToken cancel;
      if (beforehand) cancel.cancel();
      ReadJob job(fixture.files, fixture.tasks, kFour, fixture.sink([](std::size_t) {
        CHECK(false);
        return true;
      }),
                  {}, &cancel);
      CHECK_THROWS(brisk::Cancelled, job.run([&](std::uint64_t, std::size_t) { cancel.cancel(); }));
    }
  }
}

TEST("a token raised after the last task changes nothing") {
  Fixture fixture({2});
  CancelToken cancel;
  ReadJob job(fixture.files, fixture.tasks, kOne, fixture.sink([&](std::size_t index) {
    if (index == 1) cancel.cancel();
    return true;
  }),
              {}, &cancel);
  job.run({});
  CHECK(job.bytes_done() == 2 * kChunkBytes);
}

TEST("the first failure stops the others and comes out, from a sink at either end") {
  for (const bool in_place : {true, false}) {
    Fixture fixture({40});
    std::atomic<int> begun{0};
    const auto fail_at_three = [&](std::size_t index) {
      ++begun;
      if (index == 3) throw std::domain_error("task 3");
      return true;
    };
    ReadSink sink =
        fixture.sink([&](std::size_t index) { return in_place || fail_at_three(index); });
    sink.place = [&, place = sink.place](const ReadTask& task, std::size_t index) {
      if (in_place) fail_at_three(index);
      return place(task, index);
    };
    ReadJob job(fixture.files, fixture.tasks, kOne, sink);
    CHECK_THROWS(std::domain_error, job.run({}));
    CHECK(begun == 4);
  }
}

TEST("a failure on one thread keeps the other threads from beginning more tasks") {
  Fixture fixture({40});
  Gate gate;
  std::atomic<int> begun{0};
  ReadJob job(fixture.files, fixture.tasks, kFour, fixture.sink([&](std::size_t index) {
    ++begun;
    if (index > 0) {
      gate.pass();
      return true;
    }
    gate.await_waiting(3);
    thread_local OpenAtExit opener;  // by then the failure is known to all
    opener.gate = &gate;
    throw std::domain_error("task 0");
  }));
  CHECK_THROWS(std::domain_error, job.run({}));
  CHECK(begun == 4);
}

TEST("the watch runs on the running thread while tasks are read, and may end the job") {
  Fixture fixture({40});
  Gate gate;
  std::atomic<int> begun{0};
  ReadJob job(fixture.files, fixture.tasks, kFour, fixture.sink([&](std::size_t) {
    ++begun;
    gate.pass();
    return true;
  }));
  const auto here = std::this_thread::get_id();
  int calls = 0;
  const auto watch = [&](std::uint64_t done, std::size_t) {
    if (calls++ == 0) return;  // the call before the start
    CHECK(done == 0 && std::this_thread::get_id() == here);
    gate.await_waiting(4);
    gate.open();
    throw std::domain_error("enough");
  };
  CHECK_THROWS(std::domain_error, job.run(watch));
  CHECK(begun >= 4);
}

TEST("a disk that fails in the middle is the kernel's errno with the name of that file") {
  const scratch::Folder folder;
  scratch::write(folder / "good", scratch::noise(2 * kChunkBytes));
  scratch::write(folder / "bad", scratch::noise(3 * kChunkBytes));
  brisk::SystemCalls calls;
  calls.pread = [real = calls.pread](int fd, void* target, std::size_t length, off_t offset) {
    if (offset < static_cast<off_t>(kChunkBytes)) return real(fd, target, length, offset);
    errno = EIO;
    return ssize_t{-1};
  };
  std::vector<DirectFile> files;
  files.emplace_back(folder / "good");
  files.emplace_back(folder / "bad", calls);
  std::vector<ReadTask> tasks;
  for (std::uint32_t i = 0; i < 2; ++i) append_whole_file(tasks, i, files[i].size(), kChunkBytes);
  const PageBuffer memory(5 * kChunkBytes);
  ReadSink sink{.place =
                    [&](const ReadTask& task, std::size_t index) {
                      return memory.room().subspan(index * kChunkBytes, task.size);
                    },
                .consume = [](const ReadTask&, std::size_t, auto) { return true; }};
  try {
    ReadJob(files, tasks, kFour, sink).run({});
    CHECK(false);
  } catch (const std::filesystem::filesystem_error& error) {
    CHECK(error.code().value() == EIO && error.path1() == folder / "bad");
  }
}

TEST("tasks, options and milestones that cannot be are refused before anything is read") {
  Fixture fixture({3});
  const auto refused = [&](std::vector<ReadTask> tasks, const ReadOptions& options,
                           std::vector<std::size_t> milestones) {
    CHECK_THROWS(std::invalid_argument,
                 ReadJob(fixture.files, std::move(tasks), options, {}, std::move(milestones)));
  };
  const std::vector<std::uint32_t> two(2);
  refused({{.file = 1, .offset = 0, .size = 1}}, kOne, {});
  refused({{.file = 0, .offset = 4096, .size = kChunkBytes}}, kOne, {});
  refused({{.file = 0, .offset = 0, .size = 0}}, kOne, {});
  refused({{.file = 0, .offset = 0, .size = 4096}}, kOne, {});
  refused({{.file = 0, .offset = 0, .size = 2 * kChunkBytes}}, kOne, {});
  refused({{.file = 0, .offset = 3 * kChunkBytes, .size = kChunkBytes}}, kOne, {});
  refused({{.file = 0, .offset = 2 * kChunkBytes, .size = 2 * kChunkBytes}},
          {.read_bytes = 2 * kChunkBytes}, {});
  refused({{.file = 0, .offset = 0, .size = kChunkBytes, .expected = two}}, kOne, {});
  refused({}, {.threads = 0}, {});
  refused({}, {.threads = brisk::kThreadsMax + 1}, {});
  refused({}, {.depth = 0}, {});
  refused({}, {.read_bytes = kChunkBytes + 4096}, {});
  refused({}, {.read_bytes = 8 * kChunkBytes}, {});
  refused(fixture.tasks, kOne, {2, 1});
  refused(fixture.tasks, kOne, {4});
}
