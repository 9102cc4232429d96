// Reads the few kinds of JSON that a safetensors header or a manifest may hold, in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace brisk {

// What `JsonScanner::skip` steps over at most: lists and objects within each other, members of one
// object, bytes of a member's name, and values in all of one text.
inline constexpr unsigned kSkippedDepthMax = 8;
inline constexpr std::size_t kSkippedMembersMax = 64;
inline constexpr std::size_t kSkippedNameBytesMax = 256;
inline constexpr std::size_t kSkippedValuesMax = 262'144;

// Refuses an object with a name twice, with too many or with too long ones.
class JsonNames {
 public:
  // Throws JsonFault at `offset`.
  void add(std::string_view name, std::size_t offset);

 private:
  std::vector<std::string_view> names_;
};

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
  // Steps over the object that comes next: calls `member` with the name of each of its members, to
  // step over its value. Throws JsonFault, also for a name that is there twice.
  template <typename Member>
  void members(const Member& member) {
    expect('{');
    if (take('}')) return;
    JsonNames names;
    do {
      const std::size_t begin = at_;
      const std::string_view name = string();
      names.add(name, begin);
      expect(':');
      member(name);
    } while (take(','));
    expect('}');
  }
  // Steps over one value of any kind, within the limits above. Throws JsonFault.
  void skip(unsigned depth = 0);
  // Throws JsonFault if anything but white space is left.
  void expect_end();
  // Where the next byte lies, for JsonFault.
  [[nodiscard]] std::size_t offset() const noexcept { return at_; }

 private:
  void skip_space() noexcept {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }
  [[nodiscard]] static bool is_space(char sign) noexcept {
    return sign == ' ' || sign == '\n' || sign == '\r' || sign == '\t';
  }
  void skip_elements(unsigned depth);
  void skip_number();
  [[nodiscard]] bool skip_word(std::string_view word) noexcept;
  [[nodiscard]] std::size_t skip_digits() noexcept;
  [[nodiscard]] std::string_view decode(std::size_t begin, std::size_t end, std::size_t quote);

  std::span<char> text_;
  std::size_t at_ = 0;
  std::size_t skipped_ = 0;  // values
};

}  // namespace brisk
