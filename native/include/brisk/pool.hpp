// Memory that is faulted in once and read into many times: what makes loads fast. No Python in
// here.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "brisk/pool_memory.hpp"

namespace brisk {

// There is no free piece that is large enough.
class PoolFull : public std::runtime_error {
 public:
  PoolFull(std::size_t needed, std::size_t free, std::size_t largest);

  [[nodiscard]] std::size_t needed_bytes() const noexcept { return needed_; }
  [[nodiscard]] std::size_t free_bytes() const noexcept { return free_; }
  // The largest free piece.
  [[nodiscard]] std::size_t largest_bytes() const noexcept { return largest_; }

 private:
  std::size_t needed_;
  std::size_t free_;
  std::size_t largest_;
};

class PoolState;

// A piece of a pool, which goes back when this object does. It keeps the memory, not the pool:
// a pool may be closed while pieces of it are in use. Not movable; thread-safe.
class PoolRegion {
 public:
  PoolRegion(std::shared_ptr<PoolState> state, std::size_t offset, std::size_t size, bool is_owner);
  ~PoolRegion();

  PoolRegion(const PoolRegion&) = delete;
  PoolRegion& operator=(const PoolRegion&) = delete;

  // Where it begins in the pool, in bytes: a multiple of 2 MiB if it was allocated.
  [[nodiscard]] std::size_t offset() const noexcept { return offset_; }
  // The bytes asked for.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept;
  // Of an allocated region: `bytes` and what follows up to the end of the last page.
  [[nodiscard]] std::span<std::byte> room() const noexcept;

 private:
  const std::shared_ptr<PoolState> state_;
  const std::size_t offset_;
  const std::size_t size_;
  const bool is_owner_;
};

struct PoolOptions {
  std::optional<PoolKind> kind = std::nullopt;  // none: the first of them that can be had
  std::filesystem::path folder = {};            // of a tmpfs with huge pages; may be empty
  bool populate = true;                         // fault the memory in, in the background
  std::string name = {};                        // with a folder: of a file that stays, kTmpfs only
};

// Hands out pieces of one mapping, first fit, each on a boundary of 2 MiB. Thread-safe.
class Pool {
 public:
  // Throws std::system_error or std::bad_alloc if memory of the kind cannot be had, and
  // std::invalid_argument for a size of 0.
  Pool(std::size_t size, const PoolOptions& options);
  // Looks into the pool of another process; nothing can be allocated in it. Throws
  // filesystem_error.
  explicit Pool(const std::filesystem::path& path);
  // Takes up the pool that another process left, or still has, to write to it. Nothing is allocated
  // in it, whatever the other one did: for owners that cut it by themselves. Throws
  // filesystem_error.
  [[nodiscard]] static std::shared_ptr<Pool> adopt(const std::filesystem::path& path);
  ~Pool();

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Throws PoolFull, and std::invalid_argument if the pool is closed or another process's.
  [[nodiscard]] std::shared_ptr<PoolRegion> allocate(std::size_t size);
  // Returns a part of the pool. In a pool of this process it must lie in one region that is in
  // use, and keeps that; in another's nothing is checked but the bounds, and that process decides
  // how long the bytes stay. Throws std::invalid_argument.
  [[nodiscard]] std::shared_ptr<PoolRegion> view(std::size_t offset, std::size_t size);

  // Returns all of it, for an owner that cuts it by itself: nothing is allocated. Throws
  // std::invalid_argument if the pool is closed or another process's.
  [[nodiscard]] std::shared_ptr<PoolRegion> whole() const;

  // Lets nothing more be allocated. The memory goes with the last region.
  void close();
  [[nodiscard]] bool is_closed() const;

  // None if the pool is another process's.
  [[nodiscard]] std::optional<PoolKind> kind() const noexcept { return kind_; }
  // Why the better kinds could not be had, best first.
  using Refusals = std::vector<std::pair<PoolKind, std::error_code>>;
  [[nodiscard]] const Refusals& refusals() const noexcept { return refusals_; }

  // The rest throws std::invalid_argument once the pool is closed.
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] std::size_t free_bytes() const;
  // Bytes that were faulted in so far.
  [[nodiscard]] std::size_t populated() const;
  // Waits until populating ended; false if it has not within `timeout`.
  [[nodiscard]] bool wait_populated(std::chrono::duration<double> timeout) const;
  // True if at least half of what was faulted in lies in 2 MiB pages, as the kernel says: looked up
  // until all is faulted in, remembered from then on.
  [[nodiscard]] bool in_huge_pages() const;
  // Where another process attaches, as long as this one lives; none if the memory is private.
  [[nodiscard]] std::optional<std::filesystem::path> path() const;
  // What shares the memory; -1 if it is private. Valid as long as the pool is open.
  [[nodiscard]] int fd() const;

 private:
  Pool(PoolKind kind, PoolMemory memory);
  [[nodiscard]] std::shared_ptr<PoolState> state() const;

  mutable std::mutex mutex_;  // guards state_
  std::shared_ptr<PoolState> state_;
  std::optional<PoolKind> kind_;
  Refusals refusals_;
  mutable std::atomic<signed char> huge_{-1};  // in_huge_pages, as 0 or 1; -1: not known for good
};

}  // namespace brisk
