#include "utf8.hpp"

namespace brisk {
namespace {

struct Lead {
  std::size_t following;   // bytes after this one
  std::uint32_t bits;      // of the code point
  std::uint32_t smallest;  // code point that needs this many bytes
};

Lead lead_of(unsigned char byte) {
  if ((byte & 0xE0) == 0xC0) return {1, byte & 0x1FU, 0x80};
  if ((byte & 0xF0) == 0xE0) return {2, byte & 0x0FU, 0x800};
  if ((byte & 0xF8) == 0xF0) return {3, byte & 0x07U, 0x10000};
  return {0, 0, 0};
}

}  // namespace

bool is_utf8(std::string_view text) noexcept {
  for (std::size_t at = 0; at < text.size();) {
    const auto first = static_cast<unsigned char>(text[at++]);
    if (first < 0x80) continue;
    const auto is_continued = [&text, at] {
      return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
    };
    if (first >= 0xC2 && first < 0xE0 && is_continued()) {  // the most frequent, told at once
      ++at;
      continue;
    }
    const Lead lead = lead_of(first);
    if (lead.following == 0 || text.size() - at < lead.following) return false;
    std::uint32_t code_point = lead.bits;
    for (std::size_t more = 0; more < lead.following; ++more) {
      const auto byte = static_cast<unsigned char>(text[at++]);
      if ((byte & 0xC0) != 0x80) return false;
      code_point = code_point << 6 | (byte & 0x3FU);
    }
    if (code_point < lead.smallest || code_point > 0x10FFFF) return false;
    if (code_point >= 0xD800 && code_point < 0xE000) return false;
  }
  return true;
}

std::size_t write_utf8(std::uint32_t code_point, std::span<char> room) noexcept {
  const auto continuation = [code_point](unsigned shift) {
    return static_cast<char>(0x80 | (code_point >> shift & 0x3F));
  };
  if (code_point < 0x80) {
    room[0] = static_cast<char>(code_point);
    return 1;
  }
  if (code_point < 0x800) {
    room[0] = static_cast<char>(0xC0 | code_point >> 6);
    room[1] = continuation(0);
    return 2;
  }
  if (code_point < 0x10000) {
    room[0] = static_cast<char>(0xE0 | code_point >> 12);
    room[1] = continuation(6);
    room[2] = continuation(0);
    return 3;
  }
  room[0] = static_cast<char>(0xF0 | code_point >> 18);
  room[1] = continuation(12);
  room[2] = continuation(6);
  room[3] = continuation(0);
  return 4;
}

}  // namespace brisk
