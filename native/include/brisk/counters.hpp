// What the process has read so far, and how: so that a slow way of reading does not go unseen.
#pragma once

#include <cstdint>

namespace brisk {

// All in bytes since the process began.
struct Counters {
  std::uint64_t direct_bytes = 0;      // read past the page cache
  std::uint64_t buffered_bytes = 0;    // read through the page cache
  std::uint64_t uring_bytes = 0;       // of both, those that io_uring read
  std::uint64_t verified_bytes = 0;    // of both, those whose checksum was compared
  std::uint64_t huge_page_bytes = 0;   // whole files read into memory of 2 MiB pages
  std::uint64_t small_page_bytes = 0;  // whole files read into memory of 4 KiB pages
};

// A snapshot; its members need not be of the same instant. Thread-safe.
[[nodiscard]] Counters counters() noexcept;

// Adds to the counters. Thread-safe.
void count(const Counters& more) noexcept;

}  // namespace brisk
