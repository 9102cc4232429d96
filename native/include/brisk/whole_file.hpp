// The library's three jobs: read a file into memory, checksum it, copy it. No Python in here.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/read_files.hpp"
#include "brisk/read_job.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// What all three jobs share. All of them refuse a symbolic link in the last component, throw
// filesystem_error, ShortRead, Cancelled, std::bad_alloc, std::system_error (no thread to be had)
// and std::invalid_argument (threads not in 1..kThreadsMax), and whatever `watch` throws.
struct JobOptions {
  unsigned threads = 4;
  Watch watch = {};                     // see read_job.hpp
  const CancelToken* cancel = nullptr;  // ends the job within one chunk
  SystemCalls calls = {};
};

struct WholeFile {
  FileMemory bytes;
  bool direct;      // O_DIRECT was used
  bool huge_pages;  // at least half of the memory came in huge pages
  std::chrono::duration<double> elapsed;
};

// Reads the file into fresh memory, which the caller owns. With `expected` each chunk is verified
// on the thread that read it; throws ChecksumMismatch.
[[nodiscard]] WholeFile read_file(const std::filesystem::path& path,
                                  std::optional<std::span<const std::uint32_t>> expected,
                                  const JobOptions& options);

// Returns the CRC32C of each chunk, using one chunk of memory per thread.
[[nodiscard]] std::vector<std::uint32_t> checksum_file(const std::filesystem::path& path,
                                                       const JobOptions& options);

// Copies `source` to the new file `target` and returns the CRC32C of each chunk as it was read.
// The contents are on the disk on return. On any throw there is no `target`, unless it is the
// EEXIST for a `target` that was there before.
[[nodiscard]] std::vector<std::uint32_t> copy_file(const std::filesystem::path& source,
                                                   const std::filesystem::path& target,
                                                   const JobOptions& options);

}  // namespace brisk
