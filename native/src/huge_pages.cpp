#include "brisk/huge_pages.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

namespace brisk {
namespace {

struct Range {
  std::uintptr_t begin;
  std::uintptr_t end;
};

// Reads the first line of a mapping in smaps, such as "7f00-7f40 rw-p ...".
std::optional<Range> range_in(std::string_view line) {
  Range range{};
  const char* const end = line.data() + line.size();
  const auto first = std::from_chars(line.data(), end, range.begin, 16);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '-') return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, range.end, 16);
  if (second.ec != std::errc() || second.ptr == end || *second.ptr != ' ') return std::nullopt;
  return range;
}

// Returns the bytes in a line of smaps such as "AnonHugePages:   2048 kB".
std::size_t bytes_in(std::string_view line) {
  const std::size_t digits = line.find_first_of("0123456789");
  if (digits == std::string_view::npos) return 0;
  std::size_t kib = 0;
  std::from_chars(line.data() + digits, line.data() + line.size(), kib);
  return kib * 1024;
}

bool counts_huge_pages(std::string_view line) {
  for (const std::string_view name :
       {"AnonHugePages:", "ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:"}) {
    if (line.starts_with(name)) return true;
  }
  return false;
}

}  // namespace

std::size_t huge_page_bytes_in(std::span<const std::byte> memory) {
  return huge_page_bytes_in(std::vector{memory});
}

std::size_t huge_page_bytes_in(const std::vector<std::span<const std::byte>>& memory) {
  if (memory.empty()) return 0;
  std::ifstream smaps("/proc/self/smaps");
  std::size_t huge = 0;
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    if (const auto range = range_in(line)) {
      ours = std::any_of(memory.begin(), memory.end(), [&range](const auto& part) {
        const auto begin = reinterpret_cast<std::uintptr_t>(part.data());
        return range->begin >= begin && range->begin < begin + part.size();
      });
    } else if (ours && counts_huge_pages(line)) {
      huge += bytes_in(line);
    }
  }
  return huge;
}

bool has_transparent_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  return std::getline(file, line) && line.find("[never]") == std::string::npos;
}

}  // namespace brisk
