// How files are cut: the unit of reading, verifying and cancelling.
#pragma once

#include <cstddef>
#include <cstdint>

namespace brisk {

// Offsets, lengths and buffer addresses of direct reads are multiples of this.
inline constexpr std::size_t kDirectAlignment = 4096;

// Equals the largest request that common NVMe and virtio disks take, and two huge pages.
inline constexpr std::size_t kChunkBytes = std::size_t{4} << 20;

[[nodiscard]] constexpr std::uint64_t chunk_count(std::uint64_t file_bytes) noexcept {
  return file_bytes / kChunkBytes + (file_bytes % kChunkBytes != 0 ? 1 : 0);
}

[[nodiscard]] constexpr std::size_t align_up(std::size_t value, std::size_t alignment) noexcept {
  return (value + alignment - 1) / alignment * alignment;
}

[[nodiscard]] constexpr std::size_t align_down(std::size_t value, std::size_t alignment) noexcept {
  return value / alignment * alignment;
}

}  // namespace brisk
