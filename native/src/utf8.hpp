// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace brisk {

[[nodiscard]] bool is_utf8(std::string_view text) noexcept;

// Writes `code_point`, no surrogate, to the beginning of `room`, which has room for it: up to 4
// bytes. Returns how many.
std::size_t write_utf8(std::uint32_t code_point, std::span<char> room) noexcept;

}  // namespace brisk
