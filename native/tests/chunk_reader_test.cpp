// ChunkReader's promise: every chunk once, first failure out, and a stop within one chunk.
#include "brisk/chunk_reader.hpp"

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "brisk/page_buffer.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::CancelToken;
using brisk::Chunk;
using brisk::ChunkReader;
using brisk::DirectFile;
using brisk::kChunkBytes;
using brisk::PageBuffer;

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

// A sparse file of `chunks` chunks, and memory for one of them per thread.
struct Fixture {
  explicit Fixture(std::uint64_t chunks)
      : scratch_memory(kThreads * kChunkBytes), file(make(chunks)) {}

  static constexpr unsigned kThreads = 4;

  std::filesystem::path make(std::uint64_t chunks) const {
    scratch::write(folder / "f", {});
    std::filesystem::resize_file(folder / "f", chunks * kChunkBytes);
    return folder / "f";
  }

  ChunkReader::Place place() const {
    return [this](std::uint64_t, std::size_t wanted, unsigned thread) {
      return scratch_memory.room().subspan(thread * kChunkBytes, wanted);
    };
  }

  scratch::Folder folder;
  PageBuffer scratch_memory;
  DirectFile file;
};

}  // namespace

TEST("every chunk is consumed once, and the watch ends with the whole size") {
  Fixture fixture(23);
  std::mutex mutex;
  std::multiset<std::uint64_t> seen;
  std::uint64_t reported = 0;
  const auto consume = [&](const Chunk& chunk) {
    const std::lock_guard lock(mutex);
    CHECK(chunk.offset == chunk.index * kChunkBytes && chunk.bytes.size() == kChunkBytes);
    seen.insert(chunk.index);
  };
  ChunkReader reader(fixture.file, Fixture::kThreads, fixture.place(), consume, nullptr);
  reader.wait([&](std::uint64_t done) {
    CHECK(done >= reported);
    reported = done;
  });
  CHECK(seen.size() == 23 && *seen.begin() == 0 && *seen.rbegin() == 22);
  CHECK(std::set(seen.begin(), seen.end()).size() == 23);
  CHECK(reported == fixture.file.size() && reader.bytes_done() == reported);
}

TEST("after cancelling no further chunk is begun, only those in hand end") {
  Fixture fixture(100);
  Gate gate;
  CancelToken cancel;
  std::atomic<int> begun{0};
  const auto consume = [&](const Chunk&) {
    ++begun;
    gate.pass();
  };
  ChunkReader reader(fixture.file, Fixture::kThreads, fixture.place(), consume, &cancel);
  gate.await_waiting(Fixture::kThreads);
  cancel.cancel();
  gate.open();
  CHECK_THROWS(brisk::Cancelled, reader.wait({}));
  CHECK(begun == Fixture::kThreads);
  CHECK(reader.bytes_done() == Fixture::kThreads * kChunkBytes);
}

TEST("a token raised beforehand reads nothing, and an empty file is no exception") {
  for (const std::uint64_t chunks : {0, 5}) {
    Fixture fixture(chunks);
    CancelToken cancel;
    cancel.cancel();
    const auto consume = [](const Chunk&) { CHECK(false); };
    ChunkReader reader(fixture.file, 2, fixture.place(), consume, &cancel);
    CHECK_THROWS(brisk::Cancelled, reader.wait({}));
  }
}

TEST("a token raised after the last chunk changes nothing") {
  Fixture fixture(2);
  CancelToken cancel;
  const auto consume = [&](const Chunk& chunk) {
    if (chunk.index == 1) cancel.cancel();
  };
  ChunkReader reader(fixture.file, 1, fixture.place(), consume, &cancel);
  reader.wait({});
  CHECK(reader.bytes_done() == fixture.file.size());
}

TEST("the first failure stops the others and comes out of wait") {
  Fixture fixture(100);
  std::atomic<int> begun{0};
  const auto consume = [&](const Chunk& chunk) {
    ++begun;
    if (chunk.index == 3) throw std::logic_error("chunk 3");
  };
  ChunkReader reader(fixture.file, 1, fixture.place(), consume, nullptr);
  CHECK_THROWS(std::logic_error, reader.wait({}));
  CHECK(begun == 4);
}

TEST("a failure on one thread keeps the other threads from beginning more chunks") {
  Fixture fixture(100);
  Gate gate;
  std::atomic<int> begun{0};
  const auto consume = [&](const Chunk& chunk) {
    ++begun;
    if (chunk.index > 0) return gate.pass();
    gate.await_waiting(Fixture::kThreads - 1);
    thread_local OpenAtExit opener;  // by then the failure is known to all
    opener.gate = &gate;
    throw std::logic_error("chunk 0");
  };
  ChunkReader reader(fixture.file, Fixture::kThreads, fixture.place(), consume, nullptr);
  CHECK_THROWS(std::logic_error, reader.wait({}));
  CHECK(begun == Fixture::kThreads);
}

TEST("the watch runs on the waiting thread while chunks are read, and may end the job") {
  Fixture fixture(100);
  Gate gate;
  std::atomic<int> begun{0};
  const auto consume = [&](const Chunk&) {
    ++begun;
    gate.pass();
  };
  {
    ChunkReader reader(fixture.file, Fixture::kThreads, fixture.place(), consume, nullptr);
    const auto here = std::this_thread::get_id();
    const auto watch = [&](std::uint64_t done) {
      CHECK(done == 0 && std::this_thread::get_id() == here);
      gate.await_waiting(Fixture::kThreads);
      throw std::domain_error("enough");
    };
    CHECK_THROWS(std::domain_error, reader.wait(watch));
    CHECK(begun == Fixture::kThreads);
    gate.open();
  }
}

TEST("a reader that nobody waits for stops and joins in its destructor") {
  Fixture fixture(2000);
  std::atomic<int> consumed{0};
  {
    ChunkReader reader(
        fixture.file, 4, fixture.place(), [&](const Chunk&) { ++consumed; }, nullptr);
  }
  const int then = consumed;
  CHECK(then < 2000);
  CHECK(consumed == then);
}
