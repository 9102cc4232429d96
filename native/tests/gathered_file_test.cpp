// The gathered file's promise: it holds exactly the bytes that the plan says, of sources that are
// what they should be, or it is not there.
#include "brisk/gathered_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <system_error>

#include "brisk/chunk.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::GatherPlan;
using brisk::GatherSource;
using brisk::JobOptions;

std::vector<std::uint32_t> checksums_of(std::span<const std::byte> bytes) {
  std::vector<std::uint32_t> checksums;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(bytes.size(), brisk::kChunkBytes))) {
    checksums.push_back(brisk::crc32c(bytes.first(std::min(bytes.size(), brisk::kChunkBytes))));
  }
  return checksums;
}

// Two sources, and a plan that takes them apart at odd places, over several chunks.
struct Scene {
  scratch::Folder folder;
  scratch::Bytes first = scratch::noise(brisk::kChunkBytes * 2 + 12'345, 1);
  scratch::Bytes second = scratch::noise(brisk::kChunkBytes + 1, 2);
  scratch::Bytes prefix = scratch::noise(5'001, 3);
  std::vector<GatherSource> sources;
  GatherPlan plan{};
  scratch::Bytes expected;

  Scene() {
    scratch::write(folder / "first", first);
    scratch::write(folder / "second", second);
    sources = {{folder / "first", checksums_of(first)}, {folder / "second", checksums_of(second)}};
    plan.prefix = prefix;
    expected = prefix;
    take(1, 3, 1, 5'120);
    take(0, brisk::kChunkBytes - 7, brisk::kChunkBytes + 4'000, 5'376);
    take(0, 17, 0, expected.size());
    take(1, 8'192, brisk::kChunkBytes - 10'000, expected.size() + 255);
    take(0, 100, 70'000, expected.size() + 1);
    plan.size = expected.size() + 9;
    expected.resize(plan.size);
  }

  void take(std::uint32_t source, std::uint64_t offset, std::uint64_t size, std::uint64_t target) {
    plan.pieces.push_back({.source = source, .offset = offset, .size = size, .target = target});
    expected.resize(target + size);
    const scratch::Bytes& bytes = source == 0 ? first : second;
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), size,
                expected.begin() + static_cast<std::ptrdiff_t>(target));
  }

  brisk::GatheredFile run(const JobOptions& options = {}) {
    return brisk::gather_file(folder / "made", plan, sources, options);
  }
  [[nodiscard]] bool is_made() const { return std::filesystem::exists(folder / "made"); }
};

}  // namespace

TEST("a gathered file is its prefix, its pieces and zeros, for any number of threads") {
  for (const unsigned threads : {1U, 2U, 7U}) {
    Scene scene;
    const brisk::GatheredFile made = scene.run({.threads = threads});
    CHECK(scratch::equal(scratch::read(scene.folder / "made"), scene.expected));
    CHECK(made.checksums == checksums_of(scene.expected));
  }
}

TEST("a file system without direct writes gets the same file") {
  Scene scene;
  JobOptions options;
  std::atomic<int> refused = 0;
  options.calls.pwrite = [&refused](int fd, const void* bytes, std::size_t size, off_t offset) {
    if ((::fcntl(fd, F_GETFL) & O_DIRECT) != 0) {
      ++refused;
      errno = EINVAL;
      return ssize_t{-1};
    }
    return ::pwrite(fd, bytes, size, offset);
  };
  const brisk::GatheredFile made = scene.run(options);
  CHECK(refused > 0 || !brisk::DirectFile(scene.folder / "first").direct());
  CHECK(!made.direct_writes);
  CHECK(scratch::equal(scratch::read(scene.folder / "made"), scene.expected));
}

TEST("writes that take a part of what they are given are gone on with") {
  Scene scene;
  JobOptions options;
  options.calls.pwrite = [](int fd, const void* bytes, std::size_t size, off_t offset) {
    return ::pwrite(fd, bytes, std::min<std::size_t>(size, 1'000'000 / 4096 * 4096), offset);
  };
  static_cast<void>(scene.run(options));
  CHECK(scratch::equal(scratch::read(scene.folder / "made"), scene.expected));
}

TEST("a damaged byte of a source is found, whether a piece takes it or not") {
  const Scene layout;
  for (const std::uint64_t place : {std::uint64_t{0}, std::uint64_t{16}, std::uint64_t{17},
                                    brisk::kChunkBytes - 1, brisk::kChunkBytes * 2 + 12'344}) {
    Scene scene;
    scratch::Bytes damaged = scene.first;
    damaged[place] ^= std::byte{1};
    scratch::write(scene.folder / "first", damaged);
    try {
      static_cast<void>(scene.run());
      CHECK(false);
    } catch (const brisk::ChecksumMismatch& error) {
      CHECK(error.path() == scene.folder / "first");
      CHECK(error.chunk() == place / brisk::kChunkBytes);
    }
    CHECK(!scene.is_made());
    scene.sources[0].expected.reset();
    CHECK(scene.run().checksums.size() == brisk::chunk_count(scene.plan.size));
  }
}

TEST("a source with more or fewer chunks than checksums is refused before anything is made") {
  Scene scene;
  scene.sources[1].expected->push_back(0);
  CHECK_THROWS(brisk::ChecksumMismatch, scene.run());
  CHECK(!scene.is_made());
}

TEST("a full disk and a failing fsync leave no file") {
  Scene full;
  JobOptions options;
  std::atomic<int> written = 0;
  options.calls.pwrite = [&written](int fd, const void* bytes, std::size_t size, off_t offset) {
    if (written++ == 2) {
      errno = ENOSPC;
      return ssize_t{-1};
    }
    return ::pwrite(fd, bytes, size, offset);
  };
  try {
    static_cast<void>(full.run(options));
    CHECK(false);
  } catch (const std::filesystem::filesystem_error& error) {
    CHECK(error.code().value() == ENOSPC);
    CHECK(error.path1() == full.folder / "made");
  }
  CHECK(!full.is_made());
  Scene failing;
  JobOptions no_sync;
  no_sync.calls.fsync = [](int) {
    errno = EIO;
    return -1;
  };
  CHECK_THROWS(std::filesystem::filesystem_error, failing.run(no_sync));
  CHECK(!failing.is_made());
}

TEST("a cancelled job and one whose watch throws leave no file") {
  Scene cancelled;
  brisk::CancelToken token;
  token.cancel();
  CHECK_THROWS(brisk::Cancelled, cancelled.run({.cancel = &token}));
  CHECK(!cancelled.is_made());
  Scene watched;
  const auto refuse = [](std::uint64_t, std::size_t) { throw std::logic_error("enough"); };
  CHECK_THROWS(std::logic_error, watched.run({.watch = refuse}));
  CHECK(!watched.is_made());
}

TEST("a target that is there already stays as it is") {
  Scene scene;
  scratch::write(scene.folder / "made", scene.prefix);
  CHECK_THROWS(std::filesystem::filesystem_error, scene.run());
  CHECK(scratch::equal(scratch::read(scene.folder / "made"), scene.prefix));
}

TEST("a plan that makes no sense is refused before anything is made") {
  const auto refused = [](const auto& spoil) {
    Scene scene;
    spoil(scene.plan);
    CHECK_THROWS(std::invalid_argument, scene.run());
    CHECK(!scene.is_made());
  };
  refused([](GatherPlan& plan) { plan.pieces[0].source = 2; });
  refused([](GatherPlan& plan) { plan.pieces[0].target = 5'000; });
  refused([](GatherPlan& plan) { plan.pieces[1].target += brisk::kChunkBytes * 4; });
  refused([](GatherPlan& plan) { plan.pieces.back().size = UINT64_MAX; });
  refused([](GatherPlan& plan) { plan.pieces.back().target = UINT64_MAX; });
  refused([](GatherPlan& plan) { plan.size -= 10; });
  refused([](GatherPlan& plan) { std::swap(plan.pieces[0], plan.pieces[1]); });
  // Twice, of a verified source.
  refused([](GatherPlan& plan) { plan.pieces.back().offset = brisk::kChunkBytes - 8; });
}

TEST("a piece beyond the end of its source is a short read") {
  Scene scene;
  scene.plan.pieces[3].offset = scene.second.size() - 2;
  CHECK_THROWS(brisk::ShortRead, scene.run());
  scene.plan.pieces[0].offset = UINT64_MAX;
  CHECK_THROWS(brisk::ShortRead, scene.run());
  CHECK(!scene.is_made());
}

TEST("an empty file is gathered from nothing") {
  const scratch::Folder folder;
  const auto made = brisk::gather_file(folder / "made", {}, {}, {});
  CHECK(made.checksums.empty());
  CHECK(std::filesystem::file_size(folder / "made") == 0);
}
