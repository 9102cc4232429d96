#include "brisk/buffered_file.hpp"

#include <cerrno>

#include "regular_file.hpp"

namespace brisk {

BufferedFile::BufferedFile(const std::filesystem::path& path, const SystemCalls& calls)
    : path_(path),
      calls_(calls),
      fd_(open_for_reading(path)),
      size_(regular_file_size(fd_.get(), path)) {}

void BufferedFile::read(std::uint64_t offset, std::span<std::byte> room) const {
  std::size_t done = 0;
  while (done < room.size()) {
    const ssize_t got = calls_.pread(fd_.get(), room.data() + done, room.size() - done,
                                     static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("pread", path_, errno);
    if (got == 0) throw ShortRead(path_, offset, room.size(), done);
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace brisk
