#include "json_scanner.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "utf8.hpp"

namespace brisk {
namespace {

constexpr const char* kBadString = "a string that is not JSON in UTF-8";

bool is_digit(char sign) { return sign >= '0' && sign <= '9'; }

std::optional<char> short_escape(char sign) {
  switch (sign) {
    case '"':
    case '\\':
    case '/':
      return sign;
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    default:
      return std::nullopt;
  }
}

// Returns the value of four hexadecimal digits at the beginning of `text`.
std::optional<std::uint32_t> hex4(std::span<const char> text) {
  if (text.size() < 4) return std::nullopt;
  std::uint32_t value = 0;
  for (const char sign : text.first(4)) {
    const char lower = static_cast<char>(sign | 0x20);
    if (is_digit(sign)) {
      value = value << 4 | static_cast<std::uint32_t>(sign - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = value << 4 | static_cast<std::uint32_t>(lower - 'a' + 10);
    } else {
      return std::nullopt;
    }
  }
  return value;
}

// Returns how many bytes at the beginning of `text` are for certain neither quotes nor backslashes
// nor control characters, looking at eight at a time. Takes back `is_ascii` if some are not.
std::size_t plain_bytes(std::span<const char> text, bool& is_ascii) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  constexpr std::uint64_t kHighs = 0x80 * kOnes;
  const auto has_zero = [](std::uint64_t word) { return (word - kOnes) & ~word & kHighs; };
  std::size_t at = 0;
  std::uint64_t seen = 0;
  for (; text.size() - at >= sizeof(std::uint64_t); at += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + at, sizeof word);
    const std::uint64_t controls = (word - 0x20 * kOnes) & ~word & kHighs;
    const std::uint64_t quotes = has_zero(word ^ '"' * kOnes) | has_zero(word ^ '\\' * kOnes);
    if ((controls | quotes) != 0) break;
    seen |= word;
  }
  is_ascii = is_ascii && (seen & kHighs) == 0;
  return at;
}

struct Escape {
  std::uint32_t code_point;
  std::size_t length;  // in the text
};

// Reads the escape that `text` begins with. Half a surrogate pair is none.
std::optional<Escape> read_escape(std::span<const char> text) {
  if (text.size() < 2) return std::nullopt;
  if (text[1] != 'u') {
    const auto sign = short_escape(text[1]);
    if (!sign) return std::nullopt;
    return Escape{static_cast<unsigned char>(*sign), 2};
  }
  const auto first = hex4(text.subspan(2));
  if (!first || (*first >= 0xDC00 && *first < 0xE000)) return std::nullopt;
  if (*first < 0xD800 || *first >= 0xE000) return Escape{*first, 6};
  if (text.size() < 12 || text[6] != '\\' || text[7] != 'u') return std::nullopt;
  const auto second = hex4(text.subspan(8));
  if (!second || *second < 0xDC00 || *second >= 0xE000) return std::nullopt;
  return Escape{0x10000 + ((*first - 0xD800) << 10) + (*second - 0xDC00), 12};
}

}  // namespace

JsonFault::JsonFault(std::size_t offset, const std::string& problem)
    : std::runtime_error("at byte " + std::to_string(offset) + ": " + problem) {}

void JsonScanner::expect(char sign) {
  if (!take(sign)) throw JsonFault(at_, std::string("there must be '") + sign + "'");
}

std::string_view JsonScanner::string() {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != '"') throw JsonFault(at_, "there must be a string");
  const std::size_t quote = at_;
  const std::size_t begin = quote + 1;
  bool is_escaped = false;
  bool is_ascii = true;
  for (std::size_t end = begin + plain_bytes(text_.subspan(begin), is_ascii); end < text_.size();) {
    const auto sign = static_cast<unsigned char>(text_[end]);
    if (sign == '"') {
      at_ = end + 1;
      const std::string_view raw(text_.data() + begin, end - begin);
      if (!is_ascii && !is_utf8(raw)) throw JsonFault(quote, kBadString);
      return is_escaped ? decode(begin, end, quote) : raw;
    }
    if (sign < 0x20) break;
    is_escaped = is_escaped || sign == '\\';
    is_ascii = is_ascii && sign < 0x80;
    end += sign == '\\' ? 2 : 1;  // what it escapes is looked at when decoding
    if (end % 8 == 0) {
      end += plain_bytes(text_.subspan(std::min(end, text_.size())), is_ascii);
    }
  }
  throw JsonFault(quote, kBadString);
}

std::string_view JsonScanner::decode(std::size_t begin, std::size_t end, std::size_t quote) {
  const std::span<char> raw = text_.subspan(begin, end - begin);
  std::size_t to = 0;
  for (std::size_t from = 0; from < raw.size();) {
    if (raw[from] != '\\') {
      raw[to++] = raw[from++];
      continue;
    }
    const auto escape = read_escape(raw.subspan(from));
    if (!escape) throw JsonFault(quote, kBadString);
    to += write_utf8(escape->code_point, raw.subspan(to));
    from += escape->length;
  }
  return {raw.data(), to};
}

std::uint64_t JsonScanner::integer(std::uint64_t max) {
  skip_space();
  const std::size_t begin = at_;
  if (at_ >= text_.size() || !is_digit(text_[at_])) {
    throw JsonFault(at_, "there must be an integer of at least 0");
  }
  std::uint64_t value = 0;
  const bool is_zero = text_[at_] == '0';  // no digit may follow
  do {
    const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
    if (value > (max - digit) / 10) {
      throw JsonFault(begin, "there must be an integer of at most " + std::to_string(max));
    }
    value = value * 10 + digit;
    ++at_;
  } while (!is_zero && at_ < text_.size() && is_digit(text_[at_]));
  return value;
}

void JsonNames::add(std::string_view name, std::size_t offset) {
  if (name.size() > kSkippedNameBytesMax) {
    throw JsonFault(offset,
                    "a name of more than " + std::to_string(kSkippedNameBytesMax) + " bytes");
  }
  if (names_.size() == kSkippedMembersMax) {
    throw JsonFault(offset,
                    "an object of more than " + std::to_string(kSkippedMembersMax) + " members");
  }
  if (std::find(names_.begin(), names_.end(), name) != names_.end()) {
    throw JsonFault(offset, "a name that is there twice");
  }
  names_.push_back(name);
}

void JsonScanner::skip(unsigned depth) {
  skip_space();
  if (++skipped_ > kSkippedValuesMax) {
    throw JsonFault(at_, "more than " + std::to_string(kSkippedValuesMax) + " values of no use");
  }
  const char sign = at_ < text_.size() ? text_[at_] : '\0';
  if (sign == '{' || sign == '[') {
    if (depth == kSkippedDepthMax) {
      throw JsonFault(at_, "nested deeper than " + std::to_string(kSkippedDepthMax));
    }
    if (sign == '{') {
      members([this, depth](std::string_view) { skip(depth + 1); });
    } else {
      ++at_;
      skip_elements(depth + 1);
    }
  } else if (sign == '"') {
    static_cast<void>(string());
  } else if (!skip_word("true") && !skip_word("false") && !skip_word("null")) {
    skip_number();
  }
}

void JsonScanner::skip_elements(unsigned depth) {
  if (take(']')) return;
  do {
    skip(depth);
  } while (take(','));
  expect(']');
}

void JsonScanner::skip_number() {
  const std::size_t begin = at_;
  const auto refuse = [begin] { throw JsonFault(begin, "there must be a value"); };
  if (at_ < text_.size() && text_[at_] == '-') ++at_;
  const std::size_t first = at_;
  const std::size_t digits = skip_digits();
  if (digits == 0 || (digits > 1 && text_[first] == '0')) refuse();
  if (at_ < text_.size() && text_[at_] == '.') {
    ++at_;
    if (skip_digits() == 0) refuse();
  }
  if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
    ++at_;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
    if (skip_digits() == 0) refuse();
  }
}

bool JsonScanner::skip_word(std::string_view word) noexcept {
  if (std::string_view(text_.data() + at_, text_.size() - at_).substr(0, word.size()) != word) {
    return false;
  }
  at_ += word.size();
  return true;
}

std::size_t JsonScanner::skip_digits() noexcept {
  const std::size_t begin = at_;
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
  return at_ - begin;
}

void JsonScanner::expect_end() {
  skip_space();
  if (at_ < text_.size()) throw JsonFault(at_, "there must be nothing more");
}

}  // namespace brisk
