// The instruction has a latency of three cycles and can start each cycle. So three neighbouring
// blocks are summed side by side, and their sums joined: appending n zero bytes to a message
// multiplies its remainder by x^(8n), which is linear, so four small tables do it.
#include "brisk/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define BRISK_CRC32C_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__linux__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define BRISK_CRC32C_TARGET __attribute__((target("+crc")))
#endif

namespace brisk {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78;  // bit-reversed: bit 31 is the constant term
constexpr std::uint32_t kOne = std::uint32_t{1} << 31;

constexpr std::uint32_t times_x(std::uint32_t value) {
  return (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
}

using ByteTable = std::array<std::uint32_t, 256>;

constexpr std::array<ByteTable, 8> make_slices() {
  std::array<ByteTable, 8> slices{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (auto& slice : slices) {
      for (int bit = 0; bit < 8; ++bit) value = times_x(value);
      slice[byte] = value;
    }
  }
  return slices;
}

// slices[k][b]: the remainder of byte b followed by k zero bytes.
constexpr std::array<ByteTable, 8> kSlices = make_slices();

std::uint32_t step_by_table(std::uint32_t state, std::byte byte) {
  return kSlices[0][(state ^ std::to_integer<std::uint32_t>(byte)) & 0xFF] ^ (state >> 8);
}

constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = times_x(b);
  }
  return product;
}

constexpr std::uint32_t power_of_x(std::uint64_t exponent) {
  std::uint32_t result = kOne;
  for (std::uint32_t factor = times_x(kOne); exponent != 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = multiply(result, factor);
    factor = multiply(factor, factor);
  }
  return result;
}

#if defined(BRISK_CRC32C_TARGET)

// Appends `Length` zero bytes to the message behind a remainder.
template <std::size_t Length>
class Shift {
 public:
  static std::uint32_t apply(std::uint32_t state) {
    return kTables[0][state & 0xFF] ^ kTables[1][(state >> 8) & 0xFF] ^
           kTables[2][(state >> 16) & 0xFF] ^ kTables[3][state >> 24];
  }

 private:
  static constexpr std::array<ByteTable, 4> make_tables() {
    std::array<ByteTable, 4> tables{};
    const std::uint32_t factor = power_of_x(std::uint64_t{8} * Length);
    for (std::uint32_t place = 0; place < 4; ++place) {
      for (std::uint32_t byte = 0; byte < 256; ++byte) {
        tables[place][byte] = multiply(byte << (8 * place), factor);
      }
    }
    return tables;
  }

  static constexpr std::array<ByteTable, 4> kTables = make_tables();
};

#if defined(__x86_64__)

bool has_instruction() noexcept { return __builtin_cpu_supports("sse4.2") != 0; }

BRISK_CRC32C_TARGET inline std::uint32_t step(std::uint32_t state, std::byte byte) {
  return _mm_crc32_u8(state, std::to_integer<std::uint8_t>(byte));
}

BRISK_CRC32C_TARGET inline std::uint32_t step8(std::uint32_t state, const std::byte* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return static_cast<std::uint32_t>(_mm_crc32_u64(state, word));
}

#else

bool has_instruction() noexcept { return (::getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

BRISK_CRC32C_TARGET inline std::uint32_t step(std::uint32_t state, std::byte byte) {
  return __crc32cb(state, std::to_integer<std::uint8_t>(byte));
}

BRISK_CRC32C_TARGET inline std::uint32_t step8(std::uint32_t state, const std::byte* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return __crc32cd(state, word);
}

#endif

// How far ahead of the sums the memory is asked for: the processor's own prefetch stops at each
// page, and three streams of them cost a third of the speed.
constexpr std::size_t kAhead = 2048;
constexpr std::size_t kCacheLine = 64;

// Eats triples of `Length` bytes from the front of `data` for as long as there are any.
template <std::size_t Length>
BRISK_CRC32C_TARGET std::uint32_t eat_triples(std::span<const std::byte>& data,
                                              std::uint32_t state) {
  static_assert(Length % kCacheLine == 0);
  while (data.size() >= 3 * Length) {
    const std::byte* bytes = data.data();
    std::uint32_t second = 0;
    std::uint32_t third = 0;
    for (std::size_t line = 0; line < Length; line += kCacheLine) {
      __builtin_prefetch(bytes + line + kAhead);
      __builtin_prefetch(bytes + Length + line + kAhead);
      __builtin_prefetch(bytes + 2 * Length + line + kAhead);
      for (std::size_t i = line; i < line + kCacheLine; i += 8) {
        state = step8(state, bytes + i);
        second = step8(second, bytes + Length + i);
        third = step8(third, bytes + 2 * Length + i);
      }
    }
    state = Shift<Length>::apply(state) ^ second;
    state = Shift<Length>::apply(state) ^ third;
    data = data.subspan(3 * Length);
  }
  return state;
}

BRISK_CRC32C_TARGET std::uint32_t by_instruction(std::span<const std::byte> data,
                                                 std::uint32_t state) {
  // Long enough for the streams to run; no power of two, so that they use different cache sets.
  constexpr std::size_t kLong = (std::size_t{64} << 10) + 512;
  constexpr std::size_t kMiddle = std::size_t{8} << 10;
  constexpr std::size_t kShort = 256;
  state = eat_triples<kLong>(data, state);
  state = eat_triples<kMiddle>(data, state);
  state = eat_triples<kShort>(data, state);
  for (; data.size() >= 8; data = data.subspan(8)) state = step8(state, data.data());
  for (const std::byte byte : data) state = step(state, byte);
  return state;
}

#else

bool has_instruction() noexcept { return false; }

std::uint32_t by_instruction(std::span<const std::byte>, std::uint32_t state) { return state; }

#endif

}  // namespace

bool crc32c_in_hardware() noexcept {
  static const bool answer = has_instruction();
  return answer;
}

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t value) noexcept {
  return crc32c_in_hardware() ? ~by_instruction(data, ~value) : crc32c_by_table(data, value);
}

std::uint32_t crc32c_by_table(std::span<const std::byte> data, std::uint32_t value) noexcept {
  std::uint32_t state = ~value;
  for (; data.size() >= 8; data = data.subspan(8)) {
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      // The first four bytes meet the state; slice 7 is for the byte with seven more behind it.
      const std::uint32_t carried = i < 4 ? (state >> (8 * i)) & 0xFF : 0;
      next ^= kSlices[7 - i][carried ^ std::to_integer<std::uint32_t>(data[i])];
    }
    state = next;
  }
  for (const std::byte byte : data) state = step_by_table(state, byte);
  return ~state;
}

std::uint32_t crc32c_joined(std::uint32_t first, std::uint32_t second,
                            std::uint64_t second_bytes) noexcept {
  // Both are complemented at either end, which cancels out when they are added.
  return multiply(first, power_of_x(8 * second_bytes)) ^ second;
}

}  // namespace brisk
