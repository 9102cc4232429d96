// The three jobs' promise: exact bytes and checksums at every awkward size, exact blame for
// damage, and nothing left behind by a copy that failed.
#include "brisk/whole_file.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <stdexcept>
#include <vector>

#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::JobOptions;
using brisk::kChunkBytes;

using Checksums = std::vector<std::uint32_t>;

const std::vector<std::size_t> kSizes = {0,
                                         1,
                                         4095,
                                         4096,
                                         4097,
                                         kChunkBytes - 1,
                                         kChunkBytes,
                                         kChunkBytes + 1,
                                         2 * kChunkBytes + 4096,
                                         3 * kChunkBytes - 4097};

Checksums checksums_of(std::span<const std::byte> content) {
  Checksums checksums;
  for (std::size_t at = 0; at < content.size(); at += kChunkBytes) {
    checksums.push_back(
        brisk::crc32c_by_table(content.subspan(at, std::min(kChunkBytes, content.size() - at))));
  }
  return checksums;
}

JobOptions buffered() {
  JobOptions options;
  options.calls.enable_direct = [](int) {
    errno = EINVAL;
    return -1;
  };
  return options;
}

}  // namespace

TEST("read, checksum and copy agree with the content at every awkward size, direct or not") {
  const scratch::Folder folder;
  for (const std::size_t size : kSizes) {
    const auto content = scratch::noise(size);
    const auto expected = checksums_of(content);
    scratch::write(folder / "f", content);
    for (const JobOptions& options : {JobOptions{}, buffered()}) {
      const auto file = brisk::read_file(folder / "f", expected, options);
      CHECK(scratch::equal(file.bytes.bytes(), content));
      CHECK(brisk::checksum_file(folder / "f", options) == expected);
      CHECK(brisk::copy_file(folder / "f", folder / "copy", options) == expected);
      CHECK(scratch::equal(scratch::read(folder / "copy"), content));
      std::filesystem::remove(folder / "copy");
    }
  }
}

TEST("the fallback is visible in the result") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(10));
  CHECK(!brisk::read_file(folder / "f", std::nullopt, buffered()).direct);
}

TEST("a wrong checksum in any chunk names exactly that chunk") {
  const scratch::Folder folder;
  const auto content = scratch::noise(3 * kChunkBytes + 10);
  scratch::write(folder / "f", content);
  for (std::size_t wrong = 0; wrong < 4; ++wrong) {
    auto expected = checksums_of(content);
    expected[wrong] ^= 1;
    try {
      static_cast<void>(brisk::read_file(folder / "f", expected, {}));
      CHECK(false);
    } catch (const brisk::ChecksumMismatch& error) {
      CHECK(error.chunk() == wrong && error.offset() == wrong * kChunkBytes);
      CHECK(error.path() == folder / "f");
    }
  }
}

TEST("too few or too many checksums blame the first chunk without a partner") {
  const scratch::Folder folder;
  const auto content = scratch::noise(2 * kChunkBytes);
  scratch::write(folder / "f", content);
  for (const std::size_t given : {1, 3}) {
    auto expected = checksums_of(content);
    expected.resize(given);
    try {
      static_cast<void>(brisk::read_file(folder / "f", expected, {}));
      CHECK(false);
    } catch (const brisk::ChecksumMismatch& error) {
      CHECK(error.chunk() == std::min<std::size_t>(given, 2));
    }
  }
}

TEST("a thread count outside its limits is refused") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(1));
  for (const unsigned threads : {0U, brisk::kThreadsMax + 1}) {
    JobOptions options;
    options.threads = threads;
    CHECK_THROWS(std::invalid_argument, brisk::read_file(folder / "f", std::nullopt, options));
  }
}

TEST("a copy that fails at any stage leaves nothing and reports the first error") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(3 * kChunkBytes));
  const auto fails_with = [&](int expected, const JobOptions& options) {
    try {
      static_cast<void>(brisk::copy_file(folder / "f", folder / "copy", options));
      CHECK(false);
    } catch (const std::filesystem::filesystem_error& error) {
      CHECK(error.code().value() == expected);
      CHECK(error.path1() == folder / "copy");
    }
    CHECK(!std::filesystem::exists(folder / "copy"));
  };
  JobOptions full;
  full.calls.pwrite = [real = full.calls.pwrite](int fd, const void* source, std::size_t length,
                                                 off_t offset) {
    if (offset < static_cast<off_t>(kChunkBytes)) return real(fd, source, length, offset);
    errno = ENOSPC;
    return ssize_t{-1};
  };
  fails_with(ENOSPC, full);
  JobOptions broken;
  broken.calls.fsync = [](int) {
    errno = EIO;
    return -1;
  };
  fails_with(EIO, broken);
  JobOptions stuck;
  stuck.calls.pwrite = [](int, const void*, std::size_t, off_t) { return ssize_t{0}; };
  fails_with(EIO, stuck);
}

TEST("torn and interrupted writes are finished") {
  const scratch::Folder folder;
  const auto content = scratch::noise(kChunkBytes + 999);
  scratch::write(folder / "f", content);
  std::atomic<int> number{0};
  JobOptions options;
  options.calls.pwrite = [&, real = options.calls.pwrite](int fd, const void* source,
                                                          std::size_t length, off_t offset) {
    if (number++ % 2 == 0) {
      errno = EINTR;
      return ssize_t{-1};
    }
    return real(fd, source, std::min(length, std::size_t{100001}), offset);
  };
  static_cast<void>(brisk::copy_file(folder / "f", folder / "copy", options));
  CHECK(scratch::equal(scratch::read(folder / "copy"), content));
  CHECK(number > 80);
}

TEST("an existing target, a link included, is refused and left as it was") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(10));
  scratch::write(folder / "old", scratch::noise(5, 2));
  std::filesystem::create_symlink("nowhere", folder / "link");
  for (const char* target : {"old", "link", "f"}) {
    try {
      static_cast<void>(brisk::copy_file(folder / "f", folder / target, {}));
      CHECK(false);
    } catch (const std::filesystem::filesystem_error& error) {
      CHECK(error.code().value() == EEXIST);
    }
  }
  CHECK(scratch::equal(scratch::read(folder / "old"), scratch::noise(5, 2)));
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(!std::filesystem::exists(folder / "nowhere"));
}

TEST("a file truncated while it is read is a ShortRead in all three jobs") {
  const scratch::Folder folder;
  const auto truncating = [&] {
    scratch::write(folder / "f", scratch::noise(3 * kChunkBytes));
    JobOptions options;
    options.threads = 1;
    options.calls.pread = [&, real = options.calls.pread](int fd, void* target, std::size_t length,
                                                          off_t offset) {
      if (offset > 0) std::filesystem::resize_file(folder / "f", kChunkBytes + 5000);
      return real(fd, target, length, offset);
    };
    return options;
  };
  CHECK_THROWS(brisk::ShortRead, brisk::read_file(folder / "f", std::nullopt, truncating()));
  CHECK_THROWS(brisk::ShortRead, brisk::checksum_file(folder / "f", truncating()));
  CHECK_THROWS(brisk::ShortRead, brisk::copy_file(folder / "f", folder / "copy", truncating()));
  CHECK(!std::filesystem::exists(folder / "copy"));
}

TEST("a cancelled copy leaves nothing") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(3 * kChunkBytes));
  brisk::CancelToken cancel;
  JobOptions options;
  options.threads = 1;
  options.cancel = &cancel;
  options.calls.pwrite = [&, real = options.calls.pwrite](int fd, const void* source,
                                                          std::size_t length, off_t offset) {
    cancel.cancel();
    return real(fd, source, length, offset);
  };
  try {
    static_cast<void>(brisk::copy_file(folder / "f", folder / "copy", options));
    CHECK(false);
  } catch (const brisk::Cancelled& error) {
    CHECK(error.bytes_done() == kChunkBytes);
  }
  CHECK(!std::filesystem::exists(folder / "copy"));
}
