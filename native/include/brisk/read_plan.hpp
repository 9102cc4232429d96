// What is to be read, and how: the reads of a job in the order in which their bytes are needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "brisk/chunk.hpp"

namespace brisk {

inline constexpr unsigned kThreadsMax = 64;
inline constexpr unsigned kDepthMax = 64;
inline constexpr std::size_t kReadBytesMax = 4 * kChunkBytes;

enum class Engine {
  kPread,  // one read in flight per thread
  kUring,  // `depth` reads in flight per thread, where the kernel has io_uring
};

// One read: whole chunks, or what the file has after its last whole one.
struct ReadTask {
  std::uint32_t file;                            // index into the files of the job
  std::uint64_t offset;                          // in the file, in bytes, a multiple of kChunkBytes
  std::size_t size;                              // in bytes, from 1 to ReadOptions::read_bytes
  std::span<const std::uint32_t> expected = {};  // CRC32C of each chunk; empty: not verified

  [[nodiscard]] std::size_t chunks() const noexcept {
    return static_cast<std::size_t>(chunk_count(size));
  }
};

struct ReadOptions {
  Engine engine = Engine::kPread;
  unsigned threads = 4;                  // 1 to kThreadsMax
  unsigned depth = 1;                    // 1 to kDepthMax; for Engine::kUring only
  std::size_t read_bytes = kChunkBytes;  // a multiple of kChunkBytes up to kReadBytesMax
};

// The most reads that are in flight at once: how many rooms a sink must be able to give.
[[nodiscard]] unsigned reads_in_flight_max(const ReadOptions& options) noexcept;

// Throws std::invalid_argument with limit and value.
void check(const ReadOptions& options);

// Appends the reads of a whole file. `expected` has one checksum per chunk of the file, or none;
// the tasks refer to it.
void append_whole_file(std::vector<ReadTask>& tasks, std::uint32_t file, std::uint64_t file_bytes,
                       std::size_t read_bytes, std::span<const std::uint32_t> expected = {});

}  // namespace brisk
