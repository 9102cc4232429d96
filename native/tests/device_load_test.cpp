// The promise of loading to devices: the exact bytes, through fixed memory, reads and copies side
// by side; and whatever goes wrong, one precise error and nothing left behind.
#include "brisk/device_load.hpp"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>

#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/page_buffer.hpp"
#include "brisk/pin_lease.hpp"
#include "check.hpp"
#include "scratch.hpp"
#include "standin.hpp"

namespace {

using brisk::CancelToken;
using brisk::DeviceError;
using brisk::DeviceLoad;
using brisk::DeviceLoadOptions;
using brisk::FileChecksums;
using brisk::kChunkBytes;
using brisk::kHostBytesMin;
using brisk::PageBuffer;
using brisk::Piece;
using brisk::SharedMemory;

constexpr std::uint64_t kChunk = kChunkBytes;
constexpr std::uint64_t kFirst = 5 * kChunk + 777;  // bytes of the two files
constexpr std::uint64_t kSecond = 3 * kChunk;

class Count {
 public:
  void add() {
    const std::lock_guard lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  void await(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

// Two files that all tests read and none changes.
struct Files {
  Files() {
    contents.push_back(scratch::noise(kFirst, 1));
    contents.push_back(scratch::noise(kSecond, 2));
    for (std::size_t i = 0; i < contents.size(); ++i) {
      paths.push_back(folder / std::to_string(i).c_str());
      scratch::write(paths[i], contents[i]);
    }
  }
  static const Files& once() {
    static const Files files;
    return files;
  }

  scratch::Folder folder;
  std::vector<scratch::Bytes> contents;
  std::vector<std::filesystem::path> paths;
};

// The files in pieces of uneven sizes on two devices.
struct Fixture {
  Fixture() {
    const std::uint64_t sizes[] = {1, 255, kChunk, 3 * kChunk + 13, 70001};
    std::uint64_t ends[] = {0, 0};
    for (std::uint32_t file = 0; file < 2; ++file) {
      const std::uint64_t file_bytes = contents[file].size();
      for (std::uint64_t offset = 100, i = file; offset < file_bytes; ++i) {
        const std::uint64_t size = std::min(sizes[i % 5], file_bytes - offset);
        const auto device = static_cast<std::uint32_t>(i % 2);
        pieces.push_back({file, offset, size, device, ends[device]});
        ends[device] = brisk::align_up(ends[device] + size, 256);
        offset += size + (i % 3) * 1000;
      }
    }
    allocations = {{0, ends[0] + 1}, {1, ends[1] + 1}};
  }

  [[nodiscard]] DeviceLoad read(const DeviceLoadOptions& options = small()) {
    memory = brisk::allocate(allocations);
    return brisk::read_to_devices(paths, expected, pieces, memory, options);
  }

  // From memory instead of files; `pages` are freed by the fixture, after the load.
  [[nodiscard]] DeviceLoad copy(const DeviceLoadOptions& options = small()) {
    memory = brisk::allocate(allocations);
    for (const auto& content : contents) {
      pages.emplace_back(content.size());
      std::memcpy(pages.back().bytes().data(), content.data(), content.size());
    }
    std::vector<std::span<std::byte>> sources;
    for (const PageBuffer& page : pages) sources.push_back(page.bytes());
    return brisk::copy_to_devices(sources, pieces, memory, options);
  }

  [[nodiscard]] bool holds(const Piece& piece) const {
    scratch::Bytes found(piece.size);
    memory[piece.allocation]->read(piece.allocation_offset, found);
    return scratch::equal(found,
                          std::span(contents[piece.source]).subspan(piece.offset, piece.size));
  }
  [[nodiscard]] bool holds_all() const {
    return std::all_of(pieces.begin(), pieces.end(),
                       [this](const auto& one) { return holds(one); });
  }
  [[nodiscard]] std::uint64_t piece_bytes() const {
    std::uint64_t sum = 0;
    for (const Piece& piece : pieces) sum += piece.size;
    return sum;
  }
  // Nothing is left but the caller's own memory.
  [[nodiscard]] bool is_clean() const {
    const StandinAudit now = Standin::audit();
    return now.streams == 0 && now.events == 0 && now.registrations == 0 &&
           now.allocations == memory.size() && now.contexts == memory.size();
  }

  static DeviceLoadOptions small() {
    return {.host_bytes = 4 * kChunkBytes, .read = {.threads = 2}};
  }

  Standin standin;
  const std::vector<scratch::Bytes>& contents = Files::once().contents;
  const std::vector<std::filesystem::path>& paths = Files::once().paths;
  std::vector<FileChecksums> expected{std::nullopt, std::nullopt};
  std::vector<Piece> pieces;
  std::vector<brisk::DeviceAllocation> allocations;
  std::vector<PageBuffer> pages;
  std::vector<SharedMemory> memory;
};

FileChecksums checksums(std::span<const std::byte> bytes) {
  std::vector<std::uint32_t> found;
  for (std::size_t i = 0; i < bytes.size(); i += kChunkBytes) {
    found.push_back(brisk::crc32c(bytes.subspan(i, std::min(kChunkBytes, bytes.size() - i))));
  }
  return found;
}

}  // namespace

TEST("pieces of files come to their devices byte for byte") {
  Fixture fixture;
  const DeviceLoad load = fixture.read();
  CHECK(fixture.holds_all() && fixture.is_clean());
  CHECK(load.bytes_copied == fixture.piece_bytes() && load.bytes_read == kFirst + kSecond);
  CHECK(load.pinned && load.host_bytes == 4 * kChunkBytes && load.elapsed.count() > 0);
  const StandinAudit audit = Standin::audit();
  CHECK(audit.copied_bytes == load.bytes_copied && audit.pageable_copies == 0);
}

TEST("long reads, many threads and streams bring the same bytes") {
  Fixture fixture;
  const DeviceLoad load = fixture.read({.host_bytes = std::size_t{64} << 20,
                                        .streams = 5,
                                        .read = {.threads = 7, .read_bytes = 3 * kChunkBytes}});
  CHECK(fixture.holds_all() && fixture.is_clean() && load.pinned);
}

TEST("pieces of host memory come to their devices byte for byte, without a ring") {
  Fixture fixture;
  const DeviceLoad load = fixture.copy();
  CHECK(fixture.holds_all() && fixture.is_clean());
  CHECK(load.pinned && load.host_bytes == 0 && load.bytes_read == 0);
  CHECK(load.bytes_copied == fixture.piece_bytes());
  CHECK(Standin::audit().pageable_copies == 0);
}

TEST("host memory that cannot be pinned goes through the ring") {
  Fixture fixture;
  standin_fail("cuMemHostRegister_v2", 0, 800);
  const DeviceLoad load = fixture.copy();
  CHECK(fixture.holds_all() && fixture.is_clean());
  CHECK(load.pinned && load.host_bytes == 4 * kChunkBytes);
  CHECK(Standin::audit().pageable_copies == 0);
}

TEST("where nothing may be pinned the bytes come all the same, and the result says so") {
  Fixture fixture;
  standin_fail("cuMemHostRegister_v2", 0, 800);
  const DeviceLoad load = fixture.read();
  CHECK(fixture.holds_all() && fixture.is_clean());
  CHECK(!load.pinned && Standin::audit().pageable_copies > 0);
}

TEST("a load of any size passes through the host memory it was given, and no more") {
  const Standin standin;
  const scratch::Folder folder;
  const std::uint64_t bytes = 100 * kChunk;
  scratch::write(folder / "f", {});
  std::filesystem::resize_file(folder / "f", bytes);
  standin_sink(1);
  const auto memory = brisk::allocate(std::vector<brisk::DeviceAllocation>{{0, bytes}});
  const DeviceLoad load =
      brisk::read_to_devices({folder / "f"}, std::vector<FileChecksums>{std::nullopt},
                             std::vector<Piece>{{0, 0, bytes, 0, 0}}, memory,
                             {.host_bytes = 4 * kChunkBytes, .read = {.threads = 8}});
  CHECK(load.bytes_copied == bytes && load.host_bytes == 4 * kChunkBytes);
  CHECK(Standin::audit().registered_bytes_max == 4 * kChunkBytes);
  CHECK(Standin::audit().copied_bytes == bytes);
}

TEST("reading goes on while copies run, until the ring is full") {
  Fixture fixture;
  Count reads;
  DeviceLoadOptions options = Fixture::small();
  const auto pread = options.calls.pread;
  options.calls.pread = [&](int fd, void* target, std::size_t length, off_t offset) {
    if (length > 4096) reads.add();  // not the trial at opening
    return pread(fd, target, length, offset);
  };
  standin_hold();
  std::thread letter([&] {
    standin_await_held(1);
    reads.await(4);  // none has landed, and the ring has four slots
    standin_let_go();
  });
  static_cast<void>(fixture.read(options));
  letter.join();
  CHECK(fixture.holds_all() && fixture.is_clean());
}

TEST("devices are copied to at the same time") {
  Fixture fixture;
  standin_hold();
  std::thread letter([] {
    standin_await_held(3);  // each device has two streams
    standin_let_go();
  });
  static_cast<void>(fixture.read());
  letter.join();
  CHECK(Standin::audit().devices_copying_max == 2 && fixture.holds_all());
}

TEST("the watch tells of pieces only once they are on their devices") {
  for (const bool from_files : {true, false}) {
    Fixture fixture;
    DeviceLoadOptions options = Fixture::small();
    std::size_t known = 0;
    std::uint64_t last_bytes = 0;
    for (std::size_t i = 1; i <= fixture.pieces.size(); ++i) options.milestones.push_back(i);
    options.watch = [&](std::uint64_t bytes, std::size_t pieces) {
      CHECK(pieces >= known && bytes >= last_bytes);
      for (std::size_t i = known; i < pieces; ++i) CHECK(fixture.holds(fixture.pieces[i]));
      known = pieces;
      last_bytes = bytes;
    };
    static_cast<void>(from_files ? fixture.read(options) : fixture.copy(options));
    CHECK(known == fixture.pieces.size() && last_bytes == fixture.piece_bytes());
  }
}

TEST("right checksums pass, a wrong one names its chunk and leaves nothing") {
  Fixture fixture;
  fixture.expected = {checksums(fixture.contents[0]), checksums(fixture.contents[1])};
  static_cast<void>(fixture.read());
  CHECK(fixture.holds_all());
  ++(*fixture.expected[0])[3];
  try {
    static_cast<void>(fixture.read());
    CHECK(!"refused");
  } catch (const brisk::ChecksumMismatch& error) {
    CHECK(error.path() == fixture.paths[0] && error.chunk() == 3);
  }
  CHECK(fixture.is_clean());
  fixture.expected[0]->pop_back();
  CHECK_THROWS(brisk::ChecksumMismatch, fixture.read());
  fixture.expected.pop_back();
  CHECK_THROWS(std::invalid_argument, fixture.read());
}

TEST("a copy that fails ends the load with the driver's words, and nothing is left") {
  for (const bool from_files : {true, false}) {
    for (const std::uint64_t before : {0, 1, 7}) {
      Fixture fixture;
      standin_fail("copy", before, brisk::cuda::kIllegalAddress);
      try {
        static_cast<void>(from_files ? fixture.read() : fixture.copy());
        CHECK(!"ended");
      } catch (const DeviceError& error) {
        CHECK(error.name() == "CUDA_ERROR_ILLEGAL_ADDRESS");
      }
      CHECK(fixture.is_clean());
    }
  }
}

TEST("whichever call fails, the load ends with its error and nothing is left") {
  for (const char* call :
       {"cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemAlloc_v2", "cuStreamCreate",
        "cuEventCreate", "cuEventRecord", "cuEventSynchronize", "cuMemcpyHtoDAsync_v2"}) {
    for (const std::uint64_t before : {0, 1, 2, 5, 9}) {
      Fixture fixture;
      standin_fail(call, before, 999);
      try {
        static_cast<void>(fixture.read());
        CHECK(fixture.holds_all());  // fewer calls were needed than were to pass
      } catch (const DeviceError& error) {
        CHECK(error.call() == call && error.name() == "CUDA_ERROR_999");
      }
      CHECK(fixture.is_clean());
    }
  }
}

TEST("a cancelled load ends and leaves nothing, even while copies hang") {
  for (const bool from_files : {true, false}) {
    Fixture fixture;
    CancelToken cancel;
    DeviceLoadOptions options = Fixture::small();
    options.cancel = &cancel;
    if (!from_files) standin_fail("cuMemHostRegister_v2", 0, 800);  // so that it waits for room
    standin_hold();
    std::thread letter([&] {
      standin_await_held(1);
      cancel.cancel();
      standin_let_go();
    });
    CHECK_THROWS(brisk::Cancelled, from_files ? fixture.read(options) : fixture.copy(options));
    letter.join();
    CHECK(fixture.is_clean() && Standin::audit().copied_bytes < fixture.piece_bytes());
  }
}

TEST("what the watch throws ends the load and comes out of it") {
  for (const bool from_files : {true, false}) {
    Fixture fixture;
    DeviceLoadOptions options = Fixture::small();
    options.milestones = {1};
    options.watch = [](std::uint64_t, std::size_t pieces) {
      if (pieces > 0) throw std::domain_error("enough");
    };
    CHECK_THROWS(std::domain_error, from_files ? fixture.read(options) : fixture.copy(options));
    CHECK(fixture.is_clean());
  }
}

TEST("nothing to load is loaded at once, and options out of their limits are refused") {
  Fixture fixture;
  fixture.pieces = {{0, 5, 0, 0, 0}};
  static_cast<void>(fixture.read());
  static_cast<void>(fixture.copy());
  CHECK(Standin::audit().copies == 0);
  CHECK_THROWS(std::invalid_argument, fixture.read({.host_bytes = kHostBytesMin - 1}));
  CHECK_THROWS(std::invalid_argument, fixture.read({.streams = 0}));
  CHECK_THROWS(std::invalid_argument, fixture.read({.streams = brisk::kStreamsMax + 1}));
  CHECK_THROWS(std::invalid_argument, fixture.read({.read = {.threads = 0}}));
  CHECK_THROWS(std::invalid_argument, fixture.read({.milestones = {2}}));
  fixture.pieces = {{0, kFirst, 1, 0, 0}};
  CHECK_THROWS(std::invalid_argument, fixture.read());
}
