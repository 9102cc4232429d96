// The buffers that Python gets: memory of a file, of a pool, or of another process's pool.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "brisk/pool.hpp"
#include "brisk/pool_pieces.hpp"
#include "brisk/read_files.hpp"

namespace brisk::bindings {

// Owns the memory of a file that was read, a view of a pool, or a mapping of its pieces; every view
// keeps it alive.
class FileBuffer {
 public:
  explicit FileBuffer(FileMemory memory)
      : bytes_(memory.bytes()),
        pool_offset_(memory.pool_offset()),
        owner_(std::make_shared<FileMemory>(std::move(memory))) {}
  FileBuffer(const std::shared_ptr<PoolRegion>& region, bool is_readonly)
      : bytes_(region->bytes()),
        pool_offset_(region->offset()),
        is_readonly_(is_readonly),
        owner_(region) {}
  explicit FileBuffer(const std::shared_ptr<MappedPieces>& pieces)
      : bytes_(pieces->bytes()), is_readonly_(true), owner_(pieces) {}

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::optional<std::size_t> pool_offset() const { return pool_offset_; }
  [[nodiscard]] bool is_readonly() const noexcept { return is_readonly_; }

 private:
  std::span<std::byte> bytes_;
  std::optional<std::size_t> pool_offset_;
  bool is_readonly_ = false;
  std::shared_ptr<const void> owner_;
};

}  // namespace brisk::bindings
