// DirectFile's promise: the bytes of the file or a precise error, whatever the kernel does, and
// an honest answer whether O_DIRECT was used.
#include "brisk/direct_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "brisk/page_buffer.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::DirectFile;
using brisk::kDirectAlignment;
using brisk::PageBuffer;
using brisk::SystemCalls;

bool reads_back(const DirectFile& file, const scratch::Bytes& content) {
  const PageBuffer buffer(content.size());
  file.read(0, content.size(), buffer.room());
  return scratch::equal(buffer.bytes(), content);
}

int error_of(const std::filesystem::path& path) {
  try {
    const DirectFile file(path);
  } catch (const std::filesystem::filesystem_error& error) {
    return error.path1() == path ? error.code().value() : -1;
  }
  return 0;
}

// Whether O_DIRECT is set on any descriptor of this process that is open on `path`.
bool has_direct_flag(const std::filesystem::path& path) {
  for (int fd = 3; fd < 64; ++fd) {
    std::error_code ignored;
    const auto target =
        std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), ignored);
    if (target == path && (::fcntl(fd, F_GETFL) & O_DIRECT) != 0) return true;
  }
  return false;
}

}  // namespace

TEST("a file system that refuses O_DIRECT is read through the page cache, and says so") {
  const scratch::Folder folder;
  const auto content = scratch::noise(3 * kDirectAlignment + 5);
  scratch::write(folder / "f", content);
  SystemCalls calls;
  calls.enable_direct = [](int) {
    errno = EINVAL;
    return -1;
  };
  const DirectFile file(folder / "f", calls);
  CHECK(!file.direct());
  CHECK(!has_direct_flag(folder / "f"));
  CHECK(reads_back(file, content));
}

TEST("a file system that grants O_DIRECT and then refuses the read falls back at opening") {
  const scratch::Folder folder;
  const auto content = scratch::noise(3 * kDirectAlignment + 5);
  scratch::write(folder / "f", content);
  SystemCalls calls;
  calls.pread = [real = calls.pread](int fd, void* target, std::size_t length, off_t offset) {
    if ((::fcntl(fd, F_GETFL) & O_DIRECT) == 0) return real(fd, target, length, offset);
    errno = EINVAL;
    return ssize_t{-1};
  };
  const DirectFile file(folder / "f", calls);
  CHECK(!file.direct());
  CHECK(!has_direct_flag(folder / "f"));
  CHECK(reads_back(file, content));
}

TEST("an ordinary file system gives O_DIRECT, and the flag is really set") {
  const scratch::Folder folder;
  const auto content = scratch::noise(kDirectAlignment);
  scratch::write(folder / "f", content);
  const DirectFile file(folder / "f");
  if (!file.direct()) {
    std::printf("not checked: this file system refuses O_DIRECT\n");
    return;
  }
  CHECK(has_direct_flag(folder / "f"));
  CHECK(reads_back(file, content));
}

TEST("the tail of a file is right at every size around a block") {
  const scratch::Folder folder;
  for (const std::size_t blocks : {0, 1, 2, 5}) {
    for (const int more : {-1, 0, 1}) {
      const std::size_t size = blocks * kDirectAlignment + static_cast<std::size_t>(more);
      if (blocks == 0 && more < 0) continue;
      const auto content = scratch::noise(size);
      scratch::write(folder / "f", content);
      CHECK(reads_back(DirectFile(folder / "f"), content));
    }
  }
}

TEST("a file that shrinks after opening is a ShortRead, not wrong bytes") {
  const scratch::Folder folder;
  for (const std::size_t left : {std::size_t{0}, std::size_t{1000}, kDirectAlignment,
                                 kDirectAlignment + 1000, 3 * kDirectAlignment - 1}) {
    scratch::write(folder / "f", scratch::noise(3 * kDirectAlignment));
    const DirectFile file(folder / "f");
    std::filesystem::resize_file(folder / "f", left);
    const PageBuffer buffer(file.size());
    CHECK_THROWS(brisk::ShortRead, file.read(0, file.size(), buffer.room()));
  }
}

TEST("a file that grows after opening is read up to its size at opening") {
  const scratch::Folder folder;
  const auto content = scratch::noise(kDirectAlignment + 10);
  scratch::write(folder / "f", content);
  const DirectFile file(folder / "f");
  std::filesystem::resize_file(folder / "f", 5 * kDirectAlignment);
  CHECK(reads_back(file, content));
}

TEST("torn and interrupted reads are finished") {
  const scratch::Folder folder;
  const auto content = scratch::noise(20 * kDirectAlignment + 77);
  scratch::write(folder / "f", content);
  // 5000 is no multiple of a block: a direct read must go on from the last whole one.
  for (const std::size_t most : {kDirectAlignment, std::size_t{5000}, 3 * kDirectAlignment}) {
    std::atomic<int> number{0};
    SystemCalls calls;
    calls.pread = [&, real = calls.pread](int fd, void* target, std::size_t length, off_t offset) {
      if (number++ % 3 == 0) {
        errno = EINTR;
        return ssize_t{-1};
      }
      const ssize_t got = real(fd, target, length, offset);
      return std::min(got, static_cast<ssize_t>(most));
    };
    const DirectFile file(folder / "f", calls);
    CHECK(reads_back(file, content));
    CHECK(number > 7);
  }
}

TEST("a failing disk is the kernel's errno with the file's name") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(kDirectAlignment));
  SystemCalls calls;
  calls.pread = [](int, void*, std::size_t, off_t) {
    errno = EIO;
    return ssize_t{-1};
  };
  const DirectFile file(folder / "f", calls);
  const PageBuffer buffer(file.size());
  try {
    file.read(0, file.size(), buffer.room());
    CHECK(false);
  } catch (const std::filesystem::filesystem_error& error) {
    CHECK(error.code().value() == EIO);
    CHECK(error.path1() == folder / "f");
  }
}

TEST("what is no regular file is refused with the right errno") {
  const scratch::Folder folder;
  scratch::write(folder / "f", {});
  std::filesystem::create_symlink("f", folder / "link");
  std::filesystem::create_directory(folder / "d");
  CHECK(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CHECK(error_of(folder / "f") == 0);
  CHECK(error_of(folder / "missing") == ENOENT);
  CHECK(error_of(folder / "link") == ELOOP);
  CHECK(error_of(folder / "d") == EISDIR);
  CHECK(error_of(folder / "fifo") == EINVAL);  // and it does not wait for a writer
  CHECK(error_of("/dev/null") == EINVAL);
}

TEST("unaligned or too small room is refused before anything is read") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(2 * kDirectAlignment));
  const DirectFile file(folder / "f");
  const PageBuffer buffer(2 * kDirectAlignment);
  const auto room = buffer.room();
  CHECK_THROWS(std::invalid_argument, file.read(1, 1, room));
  CHECK_THROWS(std::invalid_argument, file.read(0, 1, room.subspan(512)));
  CHECK_THROWS(std::invalid_argument, file.read(0, 1, room.first(512)));
  CHECK_THROWS(std::invalid_argument, file.read(0, 2 * kDirectAlignment, room.first(4096)));
}
