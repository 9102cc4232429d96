// read_files' promise: the exact bytes of every file where they belong, in the order asked for,
// with each milestone told once; and nothing kept when it fails.
#include "brisk/read_files.hpp"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "brisk/counters.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/trial_read.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::ChunkPlace;
using brisk::FileToRead;
using brisk::kChunkBytes;
using brisk::Pool;
using brisk::PoolKind;
using brisk::ReadFilesOptions;

// Three files, of which one is empty, and their checksums.
struct Fixture {
  Fixture() {
    const std::vector<std::size_t> sizes = {3 * kChunkBytes + 5, 0, 2 * kChunkBytes};
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      content.push_back(scratch::noise(sizes[i], i + 1));
      const auto path = folder / std::to_string(i).c_str();
      scratch::write(path, content[i]);
      std::vector<std::uint32_t>& sums = checksums.emplace_back();
      for (std::size_t at = 0; at < sizes[i]; at += kChunkBytes) {
        const auto rest = std::span(content[i]).subspan(at);
        sums.push_back(brisk::crc32c(rest.first(std::min(kChunkBytes, rest.size()))));
      }
      sources.push_back({.path = path, .expected = std::nullopt});
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) sources[i].expected = checksums[i];
  }
  bool are_read(const brisk::FilesInMemory& result) const {
    bool all = result.files.size() == content.size();
    for (std::size_t i = 0; all && i < content.size(); ++i) {
      all = scratch::equal(result.files[i].bytes(), content[i]);
    }
    return all;
  }

  scratch::Folder folder;
  std::vector<scratch::Bytes> content;
  std::vector<std::vector<std::uint32_t>> checksums;
  std::vector<FileToRead> sources;
};

brisk::SystemCalls without_direct() {
  brisk::SystemCalls calls;
  calls.enable_direct = [](int) {
    errno = EINVAL;
    return -1;
  };
  return calls;
}

}  // namespace

TEST("files come into fresh memory or a pool, byte for byte, whatever the order") {
  Fixture fixture;
  Pool pool(32 * kChunkBytes, {.kind = PoolKind::kPrivate});
  for (Pool* const place : {static_cast<Pool*>(nullptr), &pool}) {
    for (const std::size_t size : {kChunkBytes, 2 * kChunkBytes, 4 * kChunkBytes}) {
      for (const auto& order : {std::vector<ChunkPlace>{}, {{2, 1}, {0, 3}, {0, 0}, {0, 1}}}) {
        const auto result = brisk::read_files(
            fixture.sources, {.read = {.read_bytes = size}, .order = order, .pool = place});
        CHECK(fixture.are_read(result));
        CHECK(result.bytes() == 5 * kChunkBytes + 5);
        for (const auto& file : result.files) {
          CHECK(file.pool_offset().has_value() == (place != nullptr));
        }
      }
      CHECK(pool.free_bytes() == pool.size());
    }
  }
  CHECK(brisk::read_files({}, {}).files.empty());
}

TEST("milestones are told once each, in order, when their chunks are there") {
  Fixture fixture;
  for (const std::size_t size : {kChunkBytes, 4 * kChunkBytes}) {
    std::vector<std::uint64_t> told;
    std::vector<std::size_t> requests;
    std::mutex mutex;
    brisk::SystemCalls calls;
    ReadFilesOptions options{.read = {.threads = 1, .read_bytes = size},
                             .order = {{2, 0}, {2, 1}, {0, 0}, {0, 1}},
                             .milestones = {0, 1, 3, 3, 6},
                             .on_milestone = [&](std::uint64_t chunks) { told.push_back(chunks); }};
    options.calls.pread = [&, real = calls.pread](int fd, void* target, std::size_t length,
                                                  off_t offset) {
      const std::lock_guard lock(mutex);
      requests.push_back(length);
      return real(fd, target, length, offset);
    };
    CHECK(fixture.are_read(brisk::read_files(fixture.sources, options)));
    CHECK((told == std::vector<std::uint64_t>{0, 1, 3, 3, 6}));
    // The three trial reads, then none across a milestone: 1, 2, and the rest.
    requests.erase(requests.begin(), requests.begin() + 3);
    const std::size_t largest = *std::max_element(requests.begin(), requests.end());
    CHECK(largest == std::min<std::size_t>(size, 2 * kChunkBytes + 4096));
  }
}

TEST("a milestone is told while chunks behind it are still to come") {
  Fixture fixture;
  std::atomic<bool> is_told{false};
  ReadFilesOptions options{.read = {.threads = 1},
                           .milestones = {2},
                           .on_milestone = [&](std::uint64_t) { is_told = true; }};
  options.calls.pread = [&, real = options.calls.pread](int fd, void* target, std::size_t length,
                                                        off_t offset) {
    // The fourth chunk waits for it.
    if (offset == 3 * static_cast<off_t>(kChunkBytes)) is_told.wait(false);
    return real(fd, target, length, offset);
  };
  options.on_milestone = [&](std::uint64_t) {
    is_told = true;
    is_told.notify_all();
  };
  CHECK(fixture.are_read(brisk::read_files(fixture.sources, options)));
}

TEST("an order or milestones that cannot be are refused") {
  Fixture fixture;
  const auto refused = [&](std::vector<ChunkPlace> order, std::vector<std::uint64_t> milestones) {
    CHECK_THROWS(
        std::invalid_argument,
        brisk::read_files(fixture.sources, {.order = std::move(order), .milestones = milestones}));
  };
  refused({{3, 0}}, {});
  refused({{1, 0}}, {});
  refused({{0, 4}}, {});
  refused({{0, 1}, {0, 1}}, {});
  refused({}, {7});
  refused({}, {2, 1});
}

TEST("damage in any file is named, and no memory of the pool is kept") {
  Fixture fixture;
  Pool pool(32 * kChunkBytes, {.kind = PoolKind::kPrivate});
  fixture.checksums[2][1] ^= 1;
  try {
    static_cast<void>(brisk::read_files(fixture.sources, {.pool = &pool}));
    CHECK(false);
  } catch (const brisk::ChecksumMismatch& error) {
    CHECK(error.path() == fixture.folder / "2" && error.chunk() == 1);
  }
  CHECK(pool.free_bytes() == pool.size());
}

TEST("a pool that is too small is told before anything is read, and stays as it was") {
  Fixture fixture;
  Pool pool(4 * kChunkBytes, {.kind = PoolKind::kPrivate});
  const auto before = brisk::counters();
  CHECK_THROWS(brisk::PoolFull, brisk::read_files(fixture.sources, {.pool = &pool}));
  CHECK(pool.free_bytes() == pool.size());
  CHECK(brisk::counters().direct_bytes == before.direct_bytes);
  pool.close();
  CHECK_THROWS(std::invalid_argument, brisk::read_files(fixture.sources, {.pool = &pool}));
}

TEST("cancelling gives the memory back and says how far it was") {
  Fixture fixture;
  Pool pool(32 * kChunkBytes, {.kind = PoolKind::kPrivate});
  brisk::CancelToken cancel;
  ReadFilesOptions options{.read = {.threads = 1}, .pool = &pool, .cancel = &cancel};
  options.calls.pread = [&, real = options.calls.pread](int fd, void* target, std::size_t length,
                                                        off_t offset) {
    if (offset > 0) cancel.cancel();
    return real(fd, target, length, offset);
  };
  try {
    static_cast<void>(brisk::read_files(fixture.sources, options));
    CHECK(false);
  } catch (const brisk::Cancelled& error) {
    CHECK(error.bytes_done() == 2 * kChunkBytes);
  }
  CHECK(pool.free_bytes() == pool.size());
}

TEST("result and counters tell direct from buffered, verified from not, huge pages from small") {
  Fixture fixture;
  const std::uint64_t all = 5 * kChunkBytes + 5;
  fixture.sources[2].expected.reset();
  auto before = brisk::counters();
  auto result = brisk::read_files(fixture.sources, {.calls = without_direct()});
  auto after = brisk::counters();
  CHECK(!result.direct && result.buffered_bytes == all && result.direct_bytes == 0);
  CHECK(after.buffered_bytes - before.buffered_bytes == all);
  CHECK(after.direct_bytes == before.direct_bytes);
  CHECK(after.verified_bytes - before.verified_bytes == 3 * kChunkBytes + 5);
  CHECK(after.huge_page_bytes - before.huge_page_bytes == (result.huge_pages ? all : 0));
  CHECK(after.small_page_bytes - before.small_page_bytes == (result.huge_pages ? 0 : all));
  before = after;
  result = brisk::read_files(fixture.sources, {});
  after = brisk::counters();
  if (result.direct) {
    CHECK(after.direct_bytes - before.direct_bytes == all);
    CHECK(after.buffered_bytes == before.buffered_bytes);
  }
}

TEST("a trial reads only what it was given, and says what really read") {
  Fixture fixture;
  const auto path = fixture.folder / "0";
  const auto some = brisk::trial_read(path, {.threads = 2}, 1, 2, std::chrono::seconds(60));
  CHECK(some.bytes == 2 * kChunkBytes && some.elapsed.count() > 0);
  const auto end = brisk::trial_read(path, {}, 3, 100, std::chrono::seconds(60));
  CHECK(end.bytes == 5);
  const auto none = brisk::trial_read(path, {}, 4, 1, std::chrono::seconds(60));
  CHECK(none.bytes == 0);
  const auto late = brisk::trial_read(path, {}, 0, 4, std::chrono::seconds(0));
  CHECK(late.bytes == 0);
  const auto buffered =
      brisk::trial_read(path, {}, 0, 1, std::chrono::seconds(60), without_direct());
  CHECK(!buffered.direct && buffered.engine == brisk::Engine::kPread);
}

// Forks, and returns whether the child finds what `holds` says of its memory.
template <typename Holds>
bool holds_in_child(const Holds& holds) {
  const pid_t child = ::fork();
  // Not _exit: a sanitizer would end the child there, which has none of the parent's threads.
  if (child == 0) ::syscall(SYS_exit_group, holds() ? 0 : 1);
  int status = -1;
  return ::waitpid(child, &status, 0) == child && status == 0;
}

TEST("a child that is forked during a read cannot tear it, and one forked later has its bytes") {
  Fixture fixture;
  Pool pool(32 * kChunkBytes, {.kind = PoolKind::kPrivate});
  for (Pool* const place : {static_cast<Pool*>(nullptr), &pool}) {
    std::span<const std::byte> first;
    int forked = 0;
    ReadFilesOptions options{.read = {.threads = 1}, .milestones = {1}, .pool = place};
    options.on_memory = [&](const auto& files) { first = files[0].bytes().first(kChunkBytes); };
    options.on_milestone = [&](std::uint64_t) {
      ++forked;
      CHECK(!scratch::is_zero(first));
      // The pages of the read are the parent's alone: nothing was shared that a write would part.
      CHECK(holds_in_child([&] { return scratch::is_zero(first); }));
    };
    const auto result = brisk::read_files(fixture.sources, options);
    CHECK(forked == 1);
    CHECK(fixture.are_read(result));
    CHECK(holds_in_child([&] { return fixture.are_read(result); }));
  }
}
