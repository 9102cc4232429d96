// Reads byte ranges of a file past the page cache. No Python in here: see bindings.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "brisk/chunk.hpp"
#include "brisk/errors.hpp"
#include "brisk/file_descriptor.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// Owns one descriptor of a regular file, with O_DIRECT where the file system grants it. Whether
// it does is decided once, when opening, by a trial read, and never changes afterwards.
// Movable, not copyable. `read` may be called from many threads at once, all else from one.
class DirectFile {
 public:
  // Throws std::filesystem::filesystem_error: ELOOP for a symbolic link in the last component,
  // EISDIR for a directory, EINVAL for anything else that is not a regular file.
  explicit DirectFile(const std::filesystem::path& path, const SystemCalls& calls = {});

  // Size at the time of opening, in bytes.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  // True if reads bypass the page cache, false after the fallback to buffered reads.
  [[nodiscard]] bool direct() const noexcept { return direct_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  // Fills the first `wanted` bytes of `room` from `offset`, or throws ShortRead or
  // filesystem_error. `offset`, the address of `room` and its length must be multiples of
  // kDirectAlignment and `room` at least `wanted` long: otherwise std::invalid_argument. The bytes
  // of `room` behind `wanted` are unspecified, and so is all of `room` after a throw.
  void read(std::uint64_t offset, std::size_t wanted, std::span<std::byte> room) const;

  // For engines that read by other means than `read`. Valid as long as this object owns it.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }

 private:
  [[nodiscard]] bool trial_read_works() const;

  std::filesystem::path path_;
  SystemCalls calls_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
  bool direct_ = false;
};

// One read, maybe in several pieces: how it goes on after a torn or an interrupted one. The same
// for all engines. Copyable; the file must outlive it.
class PendingRead {
 public:
  // Arguments and their demands are those of DirectFile::read.
  PendingRead(const DirectFile& file, std::uint64_t offset, std::size_t wanted,
              std::span<std::byte> room);

  [[nodiscard]] const DirectFile& file() const noexcept { return *file_; }
  // What to read next: where in the file, and into what.
  [[nodiscard]] std::uint64_t next_offset() const noexcept { return offset_ + done_; }
  [[nodiscard]] std::span<std::byte> next_room() const noexcept { return room_.subspan(done_); }

  // Takes what came of that: bytes read, or a negative errno. Returns true if all that was wanted
  // is there. Throws ShortRead or filesystem_error.
  [[nodiscard]] bool advance(std::int64_t result);

 private:
  const DirectFile* file_;
  std::uint64_t offset_;
  std::size_t wanted_;
  std::span<std::byte> room_;
  std::size_t done_ = 0;
  unsigned refused_ = 0;
};

}  // namespace brisk
