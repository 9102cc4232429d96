#include "brisk/new_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "brisk/chunk.hpp"

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

NewFile::NewFile(const std::filesystem::path& path, std::uint64_t size, const SystemCalls& calls,
                 Writes writes)
    : path_(path), calls_(calls), fd_(create(path)), size_(size) {
  try {
    reserve();
  } catch (...) {
    ::unlink(path_.c_str());  // a constructor that throws gets no destructor
    throw;
  }
  direct_ = writes == Writes::kDirect && calls_.enable_direct(fd_.get()) == 0;
}

NewFile::~NewFile() {
  if (!kept_) ::unlink(path_.c_str());
}

void NewFile::reserve() const {
  if (size_ == 0) return;
  // A full disk is found before the first byte is copied, and the blocks lie close together.
  if (::fallocate(fd_.get(), 0, 0, static_cast<off_t>(size_)) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) fail("fallocate", path_, errno);
}

std::size_t NewFile::write_some(std::uint64_t offset, std::span<const std::byte> source) const {
  for (;;) {
    const ssize_t put =
        calls_.pwrite(fd_.get(), source.data(), source.size(), static_cast<off_t>(offset));
    if (put > 0) return static_cast<std::size_t>(put);
    if (put == 0) fail("pwrite", path_, EIO);  // never seen, and must not loop for ever
    if (errno == EINVAL) return 0;
    if (errno != EINTR) fail("pwrite", path_, errno);
  }
}

void NewFile::write(std::uint64_t offset, std::span<const std::byte> source) const {
  while (!source.empty()) {
    const std::size_t put = write_some(offset, source);
    if (put == 0) fail("pwrite", path_, EINVAL);
    source = source.subspan(put);
    offset += put;
  }
}

void NewFile::write_blocks(std::uint64_t offset, std::span<const std::byte> blocks,
                           std::size_t size) {
  std::size_t done = 0;
  // After a part that is no whole number of blocks a direct write cannot go on, nor on a file
  // system that took the flag and refuses the write.
  while (direct_ && done < size && done % kDirectAlignment == 0) {
    const std::size_t put = write_some(offset + done, blocks.subspan(done));
    if (put == 0) break;
    done += put;
  }
  if (done >= size) return;
  // Every thread that comes here does it: another one may not have got that far yet.
  if (::fcntl(fd_.get(), F_SETFL, 0) != 0) fail("fcntl", path_, errno);
  direct_ = false;
  write(offset + done, blocks.subspan(done, size - done));
}

void NewFile::keep() {
  // Whole blocks reach beyond the end.
  if (::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0) fail("ftruncate", path_, errno);
  if (calls_.fsync(fd_.get()) != 0) fail("fsync", path_, errno);
  kept_ = true;
}

}  // namespace brisk
