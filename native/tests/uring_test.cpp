// The io_uring engine's promise: what pread gives, whatever completions say; and no read into
// memory that the job has given up.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "brisk/counters.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/page_buffer.hpp"
#include "brisk/read_job.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::DirectFile;
using brisk::Engine;
using brisk::kChunkBytes;
using brisk::PageBuffer;
using brisk::ReadJob;
using brisk::ReadOptions;
using brisk::ReadSink;
using brisk::ReadTask;
using brisk::Ring;
using brisk::SystemCalls;

constexpr ReadOptions kUring{.engine = Engine::kUring, .threads = 2, .depth = 4};

bool has_uring() {
  std::error_code refusal;
  if (brisk::open_ring(1, refusal)) return true;
  std::printf("not checked: no io_uring here: %s\n", refusal.message().c_str());
  return false;
}

// Whether a thread of this process waits in the kernel.
bool is_asleep(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t end = line.rfind(')');
  return end != std::string::npos && line.compare(end, 3, ") S") == 0;
}

// What is asked of a ring, and how many reads it has begun and not ended.
struct Ledger {
  std::atomic<int> opened{0};
  std::atomic<int> submitted{0};
  std::atomic<int> returned{0};
  std::atomic<int> closed{0};
};

// Stands between the engine and the kernel: shortens reads and makes completions say otherwise.
class FaultyRing final : public Ring {
 public:
  struct Faults {
    std::size_t read_bytes_max = SIZE_MAX;
    // Given the number of the completion and its result, returns what to say instead.
    std::function<int(int number, int result)> instead = [](int, int result) { return result; };
  };

  FaultyRing(std::unique_ptr<Ring> real, const Faults& faults, Ledger& ledger)
      : real_(std::move(real)), faults_(faults), ledger_(ledger) {
    ++ledger_.opened;
  }
  ~FaultyRing() override {
    real_.reset();
    ++ledger_.closed;
  }

  void submit(int fd, std::uint64_t offset, std::span<std::byte> room, std::uint32_t tag) override {
    ++ledger_.submitted;
    real_->submit(fd, offset, room.first(std::min(room.size(), faults_.read_bytes_max)), tag);
  }
  Completion wait() override {
    Completion completion = real_->wait();
    completion.result = faults_.instead(ledger_.returned++, completion.result);
    return completion;
  }

 private:
  std::unique_ptr<Ring> real_;
  const Faults& faults_;
  Ledger& ledger_;
};

SystemCalls faulty(const FaultyRing::Faults& faults, Ledger& ledger) {
  SystemCalls calls;
  calls.open_ring = [&, real = calls.open_ring](unsigned depth,
                                                std::error_code& refusal) -> std::unique_ptr<Ring> {
    auto ring = real(depth, refusal);
    if (!ring) return nullptr;
    return std::make_unique<FaultyRing>(std::move(ring), faults, ledger);
  };
  return calls;
}

// Two files with awkward ends, and the memory to read both into.
struct Fixture {
  Fixture() : memory(12 * kChunkBytes) {
    for (std::uint32_t i = 0; i < 2; ++i) {
      const auto path = folder / std::to_string(i).c_str();
      content.push_back(scratch::noise((4 + i) * kChunkBytes + 4096 * i + 77, i + 1));
      scratch::write(path, content[i]);
      files.emplace_back(path);
      std::vector<std::uint32_t>& sums = checksums.emplace_back();
      for (std::size_t at = 0; at < content[i].size(); at += kChunkBytes) {
        const auto rest = std::span(content[i]).subspan(at);
        sums.push_back(brisk::crc32c(rest.first(std::min(kChunkBytes, rest.size()))));
      }
    }
  }

  std::vector<ReadTask> tasks() {
    std::vector<ReadTask> all;
    for (std::uint32_t i = 0; i < 2; ++i) {
      append_whole_file(all, i, files[i].size(), kChunkBytes, checksums[i]);
    }
    return all;
  }
  ReadSink sink() {
    return {.place =
                [this](const ReadTask& task, std::size_t) {
                  return memory.room().subspan(task.file * 6 * kChunkBytes + task.offset,
                                               brisk::align_up(task.size, 4096));
                },
            .consume = [](const ReadTask&, std::size_t, auto) { return true; }};
  }
  bool is_read() const {
    for (std::size_t i = 0; i < 2; ++i) {
      const auto bytes = memory.bytes().subspan(i * 6 * kChunkBytes, content[i].size());
      if (!scratch::equal(bytes, content[i])) return false;
    }
    return true;
  }
  // Runs a job and returns what really read.
  Engine run(const SystemCalls& calls, const ReadOptions& options = kUring) {
    ReadJob job(files, tasks(), options, sink(), {}, nullptr, calls);
    job.run({});
    return job.engine();
  }

  scratch::Folder folder;
  PageBuffer memory;
  std::vector<scratch::Bytes> content;
  std::vector<std::vector<std::uint32_t>> checksums;
  std::vector<DirectFile> files;
};

}  // namespace

TEST("io_uring reads every byte of several files, at every depth and size") {
  if (!has_uring()) return;
  Fixture fixture;
  const auto before = brisk::counters().uring_bytes;
  for (const unsigned threads : {1, 3}) {
    for (const unsigned depth : {1, 3, 64}) {
      for (const std::size_t size : {kChunkBytes, 4 * kChunkBytes}) {
        std::memset(fixture.memory.bytes().data(), 0, fixture.memory.bytes().size());
        const ReadOptions options{
            .engine = Engine::kUring, .threads = threads, .depth = depth, .read_bytes = size};
        CHECK(fixture.run({}, options) == Engine::kUring);
        CHECK(fixture.is_read());
      }
    }
  }
  CHECK(brisk::counters().uring_bytes - before ==
        12 * (fixture.content[0].size() + fixture.content[1].size()));
}

TEST("io_uring finishes torn, interrupted and refused reads") {
  if (!has_uring()) return;
  Fixture fixture;
  Ledger ledger;
  FaultyRing::Faults faults{.read_bytes_max = std::size_t{3} << 20};
  faults.instead = [](int number, int result) {
    if (number % 7 == 1) return -EINTR;
    if (number % 7 == 2) return -EAGAIN;
    return std::min(result, (1 << 20) + 4096 * (number % 3) + 5);
  };
  CHECK(fixture.run(faulty(faults, ledger)) == Engine::kUring);
  CHECK(fixture.is_read());
  CHECK(ledger.returned > 40 && ledger.returned == ledger.submitted);
}

TEST("a failing disk is the kernel's errno with the file's name, by io_uring too") {
  if (!has_uring()) return;
  Fixture fixture;
  Ledger ledger;
  FaultyRing::Faults faults;
  faults.instead = [](int number, int result) { return number == 5 ? -EIO : result; };
  try {
    fixture.run(faulty(faults, ledger));
    CHECK(false);
  } catch (const std::filesystem::filesystem_error& error) {
    CHECK(error.code().value() == EIO);
    CHECK(error.path1() == fixture.folder / "0" || error.path1() == fixture.folder / "1");
  }
}

TEST("a disk that refuses for ever is an error in the end") {
  if (!has_uring()) return;
  Fixture fixture;
  Ledger ledger;
  FaultyRing::Faults faults{.read_bytes_max = 4096};
  faults.instead = [](int, int) { return -EAGAIN; };
  try {
    fixture.run(faulty(faults, ledger), {.engine = Engine::kUring, .threads = 1});
    CHECK(false);
  } catch (const std::filesystem::filesystem_error& error) {
    CHECK(error.code().value() == EAGAIN);
  }
}

TEST("a file that shrinks after opening is a ShortRead, by io_uring too") {
  if (!has_uring()) return;
  Fixture fixture;
  std::filesystem::resize_file(fixture.folder / "1", 3 * kChunkBytes + 5000);
  CHECK_THROWS(brisk::ShortRead, fixture.run({}));
}

TEST("a file that is replaced after opening is read as it was opened") {
  Fixture fixture;
  std::filesystem::rename(fixture.folder / "1", fixture.folder / "old");
  scratch::write(fixture.folder / "1", scratch::noise(kChunkBytes, 9));
  fixture.run({});
  CHECK(fixture.is_read());
}

TEST("a file that is changed in place does not pass for the one of the checksums") {
  Fixture fixture;
  auto changed = fixture.content[1];
  changed[4 * kChunkBytes + 3] ^= std::byte{1};
  scratch::write(fixture.folder / "1", changed);
  CHECK_THROWS(brisk::ChecksumMismatch, fixture.run({}));
}

TEST("a kernel that refuses io_uring gets pread instead, and the job says so") {
  for (const int refused_after : {0, 1}) {
    Fixture fixture;
    SystemCalls calls;
    int opened = 0;
    if (refused_after > 0 && !has_uring()) return;
    calls.open_ring = [&, real = calls.open_ring](unsigned depth, std::error_code& refusal) {
      if (opened++ < refused_after) return real(depth, refusal);
      refusal = std::make_error_code(std::errc::operation_not_permitted);
      return std::unique_ptr<Ring>();
    };
    const auto before = brisk::counters().uring_bytes;
    CHECK(fixture.run(calls) == (refused_after == 0 ? Engine::kPread : Engine::kUring));
    CHECK((brisk::counters().uring_bytes == before) == (refused_after == 0));
    CHECK(fixture.is_read());
  }
}

TEST("the replacement for io_uring keeps to the reads in flight that the sink has room for") {
  for (const unsigned depth : {1U, 2U, 64U}) {
    Fixture fixture;
    SystemCalls calls;
    calls.open_ring = [](unsigned, std::error_code&) { return std::unique_ptr<Ring>(); };
    const ReadOptions options{.engine = Engine::kUring, .threads = 1, .depth = depth};
    std::atomic<unsigned> now{0};
    std::atomic<unsigned> most{0};
    ReadSink sink = fixture.sink();
    sink.place = [&, place = sink.place](const ReadTask& task, std::size_t index) {
      const unsigned reads = ++now;
      for (unsigned seen = most; seen < reads && !most.compare_exchange_weak(seen, reads);) {
      }
      return place(task, index);
    };
    sink.consume = [&](const ReadTask&, std::size_t, auto) {
      --now;
      return true;
    };
    ReadJob job(fixture.files, fixture.tasks(), options, sink, {}, nullptr, calls);
    job.run({});
    CHECK(most <= brisk::reads_in_flight_max(options));
  }
}

TEST("cancelling and failing wait for the reads in flight before the memory is given up") {
  if (!has_uring()) return;
  for (const bool by_error : {false, true}) {
    Fixture fixture;
    for (int round = 0; round < 3; ++round) {
      brisk::CancelToken cancel;
      // The memory goes the moment that the job has ended: a late read would be a fault, and the
      // sanitizers watch the rest.
      auto memory = std::make_unique<PageBuffer>(8 * kChunkBytes);
      std::atomic<std::size_t> next{0};
      ReadSink sink{.place =
                        [&](const ReadTask& task, std::size_t) {
                          return memory->room().subspan((next++ % 8) * kChunkBytes,
                                                        brisk::align_up(task.size, 4096));
                        },
                    .consume = [&](const ReadTask&, std::size_t, auto) -> bool {
                      if (by_error) throw std::domain_error("enough");
                      cancel.cancel();
                      return true;
                    }};
      std::vector<ReadTask> tasks = fixture.tasks();
      for (ReadTask& task : tasks) task.expected = {};
      const ReadOptions options{.engine = Engine::kUring, .threads = 1, .depth = 8};
      ReadJob job(fixture.files, tasks, options, sink, {}, &cancel);
      if (by_error) {
        CHECK_THROWS(std::domain_error, job.run({}));
      } else {
        // All that was in flight has been taken, nothing more was begun.
        CHECK_THROWS(brisk::Cancelled, job.run({}));
        CHECK(next == 8 && job.bytes_done() == 7 * kChunkBytes + 77);
      }
      std::vector<std::byte> then(memory->bytes().begin(), memory->bytes().end());
      const bool is_still = scratch::equal(then, memory->bytes());
      CHECK(is_still);
      memory.reset();
    }
  }
}

TEST("rings are closed when the job has ended, not when the job object goes") {
  if (!has_uring()) return;
  for (const bool fails : {false, true}) {
    Fixture fixture;
    Ledger ledger;
    FaultyRing::Faults faults;
    faults.instead = [fails](int, int result) { return fails ? -EIO : result; };
    ReadJob job(fixture.files, fixture.tasks(), kUring, fixture.sink(), {}, nullptr,
                faulty(faults, ledger));
    if (fails) {
      CHECK_THROWS(std::filesystem::filesystem_error, job.run({}));
    } else {
      job.run({});
    }
    CHECK(ledger.opened == 2 && ledger.closed == 2);
  }
}

TEST("dropping a ring waits for a read that the kernel has begun, however long it takes") {
  if (!has_uring()) return;
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(4096));
  const DirectFile file(folder / "f");
  int ends[2];
  CHECK(::pipe(ends) == 0);
  PageBuffer memory(8192);
  std::error_code refusal;
  auto ring = brisk::open_ring(2, refusal);
  // Nothing is in the pipe yet: its read is begun beside the file's, and stays.
  ring->submit(ends[0], 0, memory.room().first(1), 0);
  ring->submit(file.fd(), 0, memory.room().last(4096), 1);
  CHECK(ring->wait().tag == 1);
  std::atomic<pid_t> dropping{0};
  std::atomic<bool> is_dropped{false};
  std::thread other([&] {
    dropping = ::gettid();
    ring.reset();
    is_dropped = true;
  });
  while (dropping == 0) std::this_thread::yield();
  while (!is_dropped && !is_asleep(dropping)) std::this_thread::yield();
  CHECK(!is_dropped);
  CHECK(::write(ends[1], "x", 1) == 1);
  other.join();
  CHECK(memory.bytes()[0] == std::byte{'x'});
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST("a ring that is dropped ends its reads, those begun and those only queued") {
  if (!has_uring()) return;
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(8 * kChunkBytes));
  const DirectFile file(folder / "f");
  for (const int begun : {0, 1, 4}) {
    PageBuffer memory(8 * kChunkBytes);
    std::error_code refusal;
    auto ring = brisk::open_ring(8, refusal);
    for (std::uint32_t i = 0; i < 8; ++i) {
      ring->submit(file.fd(), i * kChunkBytes, memory.room().subspan(i * kChunkBytes, kChunkBytes),
                   i);
      if (static_cast<int>(i) < begun) static_cast<void>(ring->wait());
    }
    ring.reset();
    const scratch::Bytes then(memory.bytes().begin(), memory.bytes().end());
    // What was only queued was never begun.
    const auto last = memory.bytes().last(kChunkBytes);
    CHECK(scratch::is_zero(last));
    CHECK(scratch::equal(then, memory.bytes()));
  }
}
