#include "brisk/new_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace brisk {
namespace {

[[noreturn]] void fail(const char* call, const std::filesystem::path& path, int error) {
  throw std::filesystem::filesystem_error(call, path,
                                          std::error_code(error, std::generic_category()));
}

FileDescriptor create(const std::filesystem::path& path) {
  constexpr mode_t kMode = 0644;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kMode);
  if (fd < 0) fail("open", path, errno);
  return FileDescriptor(fd);
}

}  // namespace

NewFile::NewFile(const std::filesystem::path& path, std::uint64_t size, const SystemCalls& calls)
    : path_(path), calls_(calls), fd_(create(path)) {
  try {
    reserve(size);
  } catch (...) {
    ::unlink(path_.c_str());  // a constructor that throws gets no destructor
    throw;
  }
}

NewFile::~NewFile() {
  if (!kept_) ::unlink(path_.c_str());
}

void NewFile::reserve(std::uint64_t size) const {
  if (size == 0) return;
  // A full disk is found before the first byte is copied, and the blocks lie close together.
  if (::fallocate(fd_.get(), 0, 0, static_cast<off_t>(size)) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) fail("fallocate", path_, errno);
}

void NewFile::write(std::uint64_t offset, std::span<const std::byte> source) const {
  while (!source.empty()) {
    const ssize_t put =
        calls_.pwrite(fd_.get(), source.data(), source.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("pwrite", path_, errno);
    if (put == 0) fail("pwrite", path_, EIO);  // never seen, and must not loop for ever
    source = source.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
}

void NewFile::keep() {
  if (calls_.fsync(fd_.get()) != 0) fail("fsync", path_, errno);
  kept_ = true;
}

}  // namespace brisk
