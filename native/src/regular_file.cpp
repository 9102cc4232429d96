#include "regular_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

namespace brisk {

void fail(const char* call, const std::filesystem::path& path, int error) {
  throw std::filesystem::filesystem_error(call, path,
                                          std::error_code(error, std::generic_category()));
}

FileDescriptor open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO without a writer must fail later, not hang here.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) fail("open", path, errno);
  return FileDescriptor(fd);
}

std::uint64_t regular_file_size(int fd, const std::filesystem::path& path) {
  struct stat facts{};
  if (::fstat(fd, &facts) != 0) fail("fstat", path, errno);
  if (S_ISDIR(facts.st_mode)) fail("open", path, EISDIR);
  if (!S_ISREG(facts.st_mode)) fail("open", path, EINVAL);
  return static_cast<std::uint64_t>(facts.st_size);
}

}  // namespace brisk
