#include "brisk/pool_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "brisk/chunk.hpp"
#include "brisk/huge_pages.hpp"
#include "regular_file.hpp"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

namespace brisk {
namespace {

constexpr unsigned long kTmpfsMagic = 0x01021994;
constexpr unsigned long kHugetlbfsMagic = 0x958458f6;

[[noreturn]] void refuse(const char* what, int error) {
  throw std::system_error(error, std::generic_category(), what);
}

FileDescriptor own(int fd, const char* what) {
  if (fd < 0) refuse(what, errno);
  return FileDescriptor(fd);
}

void set_size(const FileDescriptor& fd, std::size_t size) {
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) refuse("ftruncate", errno);
}

FileDescriptor make_memfd(unsigned flags, std::size_t size) {
  FileDescriptor fd =
      own(::memfd_create("brisk-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags), "memfd_create");
  set_size(fd, size);
  // Who has it mapped must not meet a missing page.
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) refuse("fcntl", errno);
  return fd;
}

// A tmpfs that is in no folder: it vanishes with the last descriptor of a file in it.
FileDescriptor mount_unseen(std::size_t size) {
#if defined(SYS_fsopen) && defined(SYS_fsconfig) && defined(SYS_fsmount)
  // From linux/mount.h, which cannot be included beside sys/mount.h everywhere.
  constexpr unsigned kCloseOnExec = 1;
  constexpr unsigned kSetString = 1;
  constexpr unsigned kCreate = 6;
  const FileDescriptor context =
      own(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", kCloseOnExec)), "fsopen");
  const auto configure = [&context](unsigned command, const char* key, const char* value) {
    if (::syscall(SYS_fsconfig, context.get(), command, key, value, 0) != 0) {
      refuse("fsconfig", errno);
    }
  };
  configure(kSetString, "huge", "always");
  configure(kSetString, "size", std::to_string(size + kHugePageBytes).c_str());
  configure(kCreate, nullptr, nullptr);
  return own(static_cast<int>(::syscall(SYS_fsmount, context.get(), kCloseOnExec, 0)), "fsmount");
#else
  static_cast<void>(size);
  refuse("fsopen", ENOSYS);
#endif
}

FileDescriptor open_tmpfs(const std::filesystem::path& folder, const std::string& name,
                          std::size_t size) {
  constexpr int kFolder = O_PATH | O_DIRECTORY | O_CLOEXEC;
  const FileDescriptor place =
      folder.empty() ? mount_unseen(size) : own(::open(folder.c_str(), kFolder), "open");
  struct statfs facts{};
  if (::fstatfs(place.get(), &facts) != 0) refuse("fstatfs", errno);
  if (static_cast<unsigned long>(facts.f_type) != kTmpfsMagic) {
    throw std::filesystem::filesystem_error("not a tmpfs", folder,
                                            std::make_error_code(std::errc::invalid_argument));
  }
  // Touching a page for which the file system has no room would be the end of the process.
  if (facts.f_blocks > 0 && facts.f_bavail * static_cast<std::uint64_t>(facts.f_bsize) < size) {
    refuse("tmpfs", ENOSPC);
  }
  constexpr int kUnnamed = O_RDWR | O_TMPFILE | O_CLOEXEC;
  constexpr int kNamed = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  FileDescriptor fd = own(name.empty() ? ::openat(place.get(), ".", kUnnamed, 0600)
                                       : ::openat(place.get(), name.c_str(), kNamed, 0600),
                          "openat");
  set_size(fd, size);
  // Others may fill a file system that is theirs, too. One that is ours alone has room for us.
  while (!folder.empty() && ::fallocate(fd.get(), 0, 0, static_cast<off_t>(size)) != 0) {
    if (errno != EINTR) refuse("fallocate", errno);
  }
  return fd;
}

// Maps `size` bytes of `fd` on a boundary of 2 MiB, without which there are no huge pages.
std::span<std::byte> map(const FileDescriptor& fd, std::size_t size, bool writable) {
  const std::size_t reserved = size + kHugePageBytes;
  void* const raw = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) refuse("mmap", errno);
  const auto start = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t data = align_up(start, kHugePageBytes);
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const mapped =
      ::mmap(reinterpret_cast<void*>(data), size, protection, MAP_SHARED | MAP_FIXED, fd.get(), 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    ::munmap(raw, reserved);
    refuse("mmap", error);
  }
  if (data > start) ::munmap(raw, data - start);
  const std::uintptr_t end = data + size;
  if (start + reserved > end) ::munmap(reinterpret_cast<void*>(end), start + reserved - end);
  ::madvise(mapped, size, MADV_HUGEPAGE);  // a wish, which most kernels deny to memfds
  return {static_cast<std::byte*>(mapped), size};
}

std::size_t whole_pages(std::size_t size) {
  if (size > SIZE_MAX / 4) throw std::bad_alloc();
  return align_up(std::max<std::size_t>(size, 1), kHugePageBytes);
}

}  // namespace

PoolMemory PoolMemory::make(PoolKind kind, std::size_t size, const std::filesystem::path& folder,
                            const std::string& name) {
  const std::size_t whole = whole_pages(size);
  if (!name.empty()) {
    if (kind != PoolKind::kTmpfs || folder.empty() || name.find('/') != std::string::npos) {
      throw std::invalid_argument("only a tmpfs in a folder has room for a file of a name");
    }
    PoolMemory made(open_tmpfs(folder, name, whole), whole, true);
    made.name_ = folder / name;
    return made;
  }
  switch (kind) {
    case PoolKind::kHugetlb:
      return {make_memfd(MFD_HUGETLB | MFD_HUGE_2MB, whole), whole, true};
    case PoolKind::kTmpfs:
      return {open_tmpfs(folder, name, whole), whole, true};
    case PoolKind::kPrivate:
      return PoolMemory(PageBuffer(whole));
    case PoolKind::kSmall:
      break;
  }
  return {make_memfd(0, whole), whole, true};
}

FileDescriptor open_shared_memory(const std::filesystem::path& path, bool writable) {
  const int access = writable ? O_RDWR : O_RDONLY;
  const int opened = ::open(path.c_str(), access | O_CLOEXEC | O_NONBLOCK);
  if (opened < 0) fail("open", path, errno);
  FileDescriptor fd(opened);
  const std::uint64_t size = regular_file_size(fd.get(), path);
  struct statfs facts{};
  if (::fstatfs(fd.get(), &facts) != 0) fail("fstatfs", path, errno);
  const auto magic = static_cast<unsigned long>(facts.f_type);
  const bool is_memory = magic == kTmpfsMagic || magic == kHugetlbfsMagic;
  if (!is_memory || size == 0 || size % kHugePageBytes != 0) fail("attach", path, EINVAL);
  return fd;
}

PoolMemory PoolMemory::attach(const std::filesystem::path& path) {
  FileDescriptor fd = open_shared_memory(path);
  const std::uint64_t size = regular_file_size(fd.get(), path);
  return {std::move(fd), static_cast<std::size_t>(size), false};
}

PoolMemory PoolMemory::adopt(const std::filesystem::path& path) {
  FileDescriptor fd = open_shared_memory(path, true);
  const std::uint64_t size = regular_file_size(fd.get(), path);
  PoolMemory adopted(std::move(fd), static_cast<std::size_t>(size), true);
  // What is in /proc is gone with its process, so such a name is none.
  if (path.native().rfind("/proc/", 0) != 0) adopted.name_ = path;
  return adopted;
}

PoolMemory::PoolMemory(PageBuffer pages)
    : pages_(std::make_unique<PageBuffer>(std::move(pages))), fd_(-1), bytes_(pages_->bytes()) {}

PoolMemory::PoolMemory(FileDescriptor fd, std::size_t size, bool writable)
    : fd_(std::move(fd)), bytes_(map(fd_, size, writable)) {}

PoolMemory::~PoolMemory() {
  if (!pages_ && !bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

PoolMemory::PoolMemory(PoolMemory&& other) noexcept
    : pages_(std::move(other.pages_)),
      fd_(std::move(other.fd_)),
      name_(std::move(other.name_)),
      bytes_(std::exchange(other.bytes_, {})) {}

PoolMemory& PoolMemory::operator=(PoolMemory&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(fd_, other.fd_);
  std::swap(name_, other.name_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

std::optional<std::filesystem::path> PoolMemory::path() const {
  if (pages_) return std::nullopt;
  if (!name_.empty()) return name_;
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_.get());
}

}  // namespace brisk
