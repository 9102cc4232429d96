// Reads the few kinds of JSON that a safetensors header may hold, in place and without recursion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace brisk {

// The text is not what the caller expected at `offset`.
class JsonFault : public std::runtime_error {
 public:
  JsonFault(std::size_t offset, const std::string& problem);
};

// Walks through JSON of a known shape: the caller says what must come next, so that what nests
// deeper than expected, or is of another kind, is a fault at its first byte. Escapes are decoded
// in place, which needs no memory: nothing gets longer.
class JsonScanner {
 public:
  explicit JsonScanner(std::span<char> text) noexcept : text_(text) {}

  // Steps over `sign` if it comes next, after any white space.
  [[nodiscard]] bool take(char sign) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != sign) return false;
    ++at_;
    return true;
  }
  // Steps over `sign`. Throws JsonFault if something else comes next.
  void expect(char sign);
  // Returns the string that comes next as UTF-8: a view of the text. Throws JsonFault.
  [[nodiscard]] std::string_view string();
  // Returns the integer that comes next, from 0 to `max`. Throws JsonFault.
  [[nodiscard]] std::uint64_t integer(std::uint64_t max);
  // Throws JsonFault if anything but white space is left.
  void expect_end();

 private:
  void skip_space() noexcept {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }
  [[nodiscard]] static bool is_space(char sign) noexcept {
    return sign == ' ' || sign == '\n' || sign == '\r' || sign == '\t';
  }
  [[nodiscard]] std::string_view decode(std::size_t begin, std::size_t end, std::size_t quote);

  std::span<char> text_;
  std::size_t at_ = 0;
};

}  // namespace brisk
