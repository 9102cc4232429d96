// CRC32C (Castagnoli), the checksum of chunks. No Python in here: see bindings.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace brisk {

// Returns the checksum of `data`, continuing from `value`: the checksum of a + b is
// crc32c(b, crc32c(a)). Uses the processor's instruction where the machine has it.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> data,
                                   std::uint32_t value = 0) noexcept;

// The same function by table: for processors without the instruction, and to test against.
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> data,
                                            std::uint32_t value = 0) noexcept;

// Returns the checksum of a + b from those of a and b, the latter of fewer than 2^61 bytes.
[[nodiscard]] std::uint32_t crc32c_joined(std::uint32_t first, std::uint32_t second,
                                          std::uint64_t second_bytes) noexcept;

// True if `crc32c` runs on the processor's instruction. Found out once, at the first call.
[[nodiscard]] bool crc32c_in_hardware() noexcept;

}  // namespace brisk
