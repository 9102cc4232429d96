// Whether memory really lies in 2 MiB pages: the kernel grants the wish silently or not at all.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace brisk {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

// How many bytes of the mappings that lie within `memory` are in huge pages now: anonymous, shared
// or reserved ones. 0 where that cannot be told.
[[nodiscard]] std::size_t huge_page_bytes_in(std::span<const std::byte> memory);
// The same of several ranges at once: looking walks through all memory of the process.
[[nodiscard]] std::size_t huge_page_bytes_in(const std::vector<std::span<const std::byte>>& memory);

// False if the kernel was told to give anonymous memory no huge pages, or has none.
[[nodiscard]] bool has_transparent_huge_pages();

}  // namespace brisk
