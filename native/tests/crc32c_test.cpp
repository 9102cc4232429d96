// The checksum's promise: hardware, table and the standard's test vectors agree at every length,
// alignment and split.
#include "brisk/crc32c.hpp"

#include <array>
#include <cstdint>
#include <cstdio>
#include <string_view>

#include "check.hpp"
#include "scratch.hpp"

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The definition, bit by bit, sharing nothing with the library.
std::uint32_t by_definition(std::span<const std::byte> data) {
  std::uint32_t state = 0xFFFFFFFF;
  for (const std::byte byte : data) {
    state ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? 0x82F63B78U : 0);
  }
  return ~state;
}

}  // namespace

TEST("crc32c gives the published values (RFC 3720 B.4, and the check value)") {
  const scratch::Bytes zeros(32, std::byte{0});
  const scratch::Bytes ones(32, std::byte{0xFF});
  for (const auto function : {brisk::crc32c, brisk::crc32c_by_table}) {
    CHECK(function({}, 0) == 0);
    CHECK(function(bytes_of("123456789"), 0) == 0xE3069283);
    CHECK(function(zeros, 0) == 0x8A9136AA);
    CHECK(function(ones, 0) == 0x62A8AB43);
  }
}

TEST("instruction and table follow the definition at every length and alignment") {
  std::printf("crc32c runs %s\n", brisk::crc32c_in_hardware() ? "in hardware" : "by table");
  const scratch::Bytes data = scratch::noise(2 * 3 * 8192 + 3 * 256 + 64);
  const auto agree = [&](std::size_t start, std::size_t length) {
    const auto part = std::span(data).subspan(start, length);
    const std::uint32_t expected = by_definition(part);
    CHECK(brisk::crc32c(part) == expected);
    CHECK(brisk::crc32c_by_table(part) == expected);
  };
  for (std::size_t length = 0; length < 200; ++length) agree(length % 8, length);
  for (const std::size_t middle : {3 * 256, 6 * 256, 3 * 8192, 3 * 8192 + 3 * 256, 6 * 8192}) {
    for (std::size_t length = middle - 9; length <= middle + 9; ++length) agree(length % 8, length);
  }
}

TEST("a checksum can be continued at any split") {
  const scratch::Bytes data = scratch::noise(30000);
  const std::uint32_t whole = brisk::crc32c(data);
  for (const std::size_t split : {0, 1, 7, 8, 767, 768, 24575, 24576, 29999, 30000}) {
    const auto front = std::span(data).first(split);
    const auto back = std::span(data).subspan(split);
    CHECK(brisk::crc32c(back, brisk::crc32c(front)) == whole);
    CHECK(brisk::crc32c_by_table(back, brisk::crc32c(front)) == whole);
  }
}

TEST("the checksum of two parts is that of both together") {
  const scratch::Bytes bytes = scratch::noise(70'000);
  const std::span<const std::byte> all(bytes);
  for (const std::size_t first : {std::size_t{0}, std::size_t{1}, std::size_t{4097}, all.size()}) {
    const std::uint32_t a = brisk::crc32c(all.first(first));
    const std::uint32_t b = brisk::crc32c(all.subspan(first));
    CHECK(brisk::crc32c_joined(a, b, all.size() - first) == brisk::crc32c(all));
  }
}
