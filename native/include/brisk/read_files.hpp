// Reads whole files into memory, from one list of reads over all of them. No Python in here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/page_buffer.hpp"
#include "brisk/pool.hpp"
#include "brisk/read_job.hpp"
#include "brisk/read_plan.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// The memory of one file: of its own, or a region of a pool. Copies share it; it goes with the
// last.
class FileMemory {
 public:
  explicit FileMemory(PageBuffer pages) : pages_(std::make_shared<PageBuffer>(std::move(pages))) {}
  explicit FileMemory(std::shared_ptr<PoolRegion> region) : region_(std::move(region)) {}

  [[nodiscard]] std::span<std::byte> bytes() const noexcept;
  // `bytes` and what follows up to the end of the last page.
  [[nodiscard]] std::span<std::byte> room() const noexcept;
  [[nodiscard]] std::size_t size() const noexcept { return bytes().size(); }
  // Where it begins in its pool; none if it lies in no pool.
  [[nodiscard]] std::optional<std::size_t> pool_offset() const noexcept;

 private:
  std::shared_ptr<PageBuffer> pages_;
  std::shared_ptr<PoolRegion> region_;
};

struct FileToRead {
  std::filesystem::path path;
  // CRC32C of each chunk, which must match; none: not verified.
  std::optional<std::span<const std::uint32_t>> expected = std::nullopt;
};

// One chunk of one of the files.
struct ChunkPlace {
  std::uint32_t file;
  std::uint64_t chunk;
};

struct ReadFilesOptions {
  ReadOptions read = {};
  // The chunks that are needed first, in that order, each at most once; all others follow in the
  // order of the files.
  std::vector<ChunkPlace> order = {};
  // Rising counts of chunks in that order: `on_milestone` is called with each of them, on the
  // calling thread, as soon as so many leading chunks are there and verified.
  std::vector<std::uint64_t> milestones = {};
  std::function<void(std::uint64_t chunks)> on_milestone = {};
  // Called once, on the calling thread before anything is read, with where the files will lie:
  // for those who use a milestone's chunks at once. A copy keeps the memory, whatever happens.
  std::function<void(const std::vector<FileMemory>& files)> on_memory = {};
  Pool* pool = nullptr;  // where the files go; null: each into fresh memory
  std::function<void(std::uint64_t bytes_done)> watch = {};  // as Watch
  const CancelToken* cancel = nullptr;                       // ends the job within one read
  SystemCalls calls = {};
};

struct FilesInMemory {
  std::vector<FileMemory> files;     // in the order of the paths
  Engine engine = Engine::kPread;    // what really read
  std::uint64_t direct_bytes = 0;    // of files that were read past the page cache
  std::uint64_t buffered_bytes = 0;  // of files whose file system refused that
  bool direct = true;                // O_DIRECT was used for every file
  bool huge_pages = false;           // at least half of the memory is in huge pages
  std::chrono::duration<double> elapsed{};

  [[nodiscard]] std::uint64_t bytes() const noexcept { return direct_bytes + buffered_bytes; }
};

// Throws what ReadJob throws; ChecksumMismatch also for a wrong number of checksums; PoolFull;
// std::bad_alloc; std::invalid_argument for an order or milestones that cannot be. Whatever is
// thrown, no memory is kept.
[[nodiscard]] FilesInMemory read_files(std::span<const FileToRead> sources,
                                       const ReadFilesOptions& options);

}  // namespace brisk
