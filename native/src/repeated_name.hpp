// Finds a name that is there twice among many that a stranger chose.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "brisk/crc32c.hpp"

namespace brisk {

// Returns the number of the first of `count` names that repeats an earlier one; `count` if none
// does. `name_of` gives a name by its number.
//
// Names are sorted by checksum first, which is fast, and by themselves where checksums agree, so
// that no choice of names makes this slow.
template <typename NameOf>
[[nodiscard]] std::size_t first_repeated(std::size_t count, const NameOf& name_of) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> order;  // checksum and number
  order.reserve(count);
  for (std::uint32_t number = 0; number < count; ++number) {
    const std::string_view name = name_of(number);
    order.emplace_back(crc32c(std::as_bytes(std::span(name))), number);
  }
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    if (a.first != b.first) return a.first < b.first;
    const int compared = name_of(a.second).compare(name_of(b.second));
    return compared != 0 ? compared < 0 : a.second < b.second;
  });
  std::size_t first = count;
  for (std::size_t place = 1; place < order.size(); ++place) {
    const auto& [checksum, number] = order[place];
    const auto& [checksum_before, before] = order[place - 1];
    if (checksum == checksum_before && name_of(number) == name_of(before)) {
      first = std::min<std::size_t>(first, number);
    }
  }
  return first;
}

}  // namespace brisk
