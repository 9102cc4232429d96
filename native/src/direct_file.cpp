#include "brisk/direct_file.hpp"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <system_error>

#include "regular_file.hpp"

namespace brisk {
namespace {

// How often in a row the kernel may be too short of memory to begin a read.
constexpr unsigned kRefusedMax = 10'000;

bool is_aligned(std::uint64_t offset, std::span<const std::byte> room) {
  const auto address = reinterpret_cast<std::uintptr_t>(room.data());
  return (offset | address | room.size()) % kDirectAlignment == 0;
}

}  // namespace

DirectFile::DirectFile(const std::filesystem::path& path, const SystemCalls& calls)
    : path_(path),
      calls_(calls),
      fd_(open_for_reading(path)),
      size_(regular_file_size(fd_.get(), path)) {
  // The flag is set on the open descriptor: opening a second time could meet another file.
  direct_ = calls_.enable_direct(fd_.get()) == 0 && trial_read_works();
  if (!direct_ && ::fcntl(fd_.get(), F_SETFL, 0) != 0) fail("fcntl", path, errno);
}

bool DirectFile::trial_read_works() const {
  // Some file systems accept the flag and refuse the read, or want a larger alignment than ours.
  alignas(kDirectAlignment) std::array<std::byte, kDirectAlignment> block;
  ssize_t got = 0;
  do {
    got = calls_.pread(fd_.get(), block.data(), block.size(), 0);
  } while (got < 0 && errno == EINTR);
  // Any other error is the file's own trouble, which the real read will report.
  return got >= 0 || errno != EINVAL;
}

void DirectFile::read(std::uint64_t offset, std::size_t wanted, std::span<std::byte> room) const {
  PendingRead pending(*this, offset, wanted, room);
  if (wanted == 0) return;
  for (;;) {
    const auto next = pending.next_room();
    const ssize_t got = calls_.pread(fd_.get(), next.data(), next.size(),
                                     static_cast<off_t>(pending.next_offset()));
    if (pending.advance(got >= 0 ? got : -errno)) return;
  }
}

PendingRead::PendingRead(const DirectFile& file, std::uint64_t offset, std::size_t wanted,
                         std::span<std::byte> room)
    : file_(&file), offset_(offset), wanted_(wanted), room_(room) {
  if (!is_aligned(offset, room)) throw std::invalid_argument("read: offset or room unaligned");
  if (room.size() < wanted) throw std::invalid_argument("read: room smaller than wanted");
}

bool PendingRead::advance(std::int64_t result) {
  if (result == -EINTR || (result == -EAGAIN && ++refused_ < kRefusedMax)) return false;
  if (result < 0) fail("read", file_->path(), static_cast<int>(-result));
  const std::size_t reached = done_ + static_cast<std::size_t>(result);
  if (reached >= wanted_) return true;
  // A direct read goes on at whole blocks only. Inside a block it stops at the end of the file,
  // which reading that block once more tells for certain.
  const std::size_t next = file_->direct() ? align_down(reached, kDirectAlignment) : reached;
  if (next == done_) throw ShortRead(file_->path(), offset_, wanted_, reached);
  done_ = next;
  refused_ = 0;
  return false;
}

}  // namespace brisk
