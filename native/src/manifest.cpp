#include "brisk/manifest.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "brisk/buffered_file.hpp"
#include "brisk/chunk.hpp"
#include "file_name.hpp"
#include "json_scanner.hpp"

namespace brisk {
namespace {

constexpr std::size_t kChecksumDigits = 8;

[[noreturn]] void refuse(const std::string& reason) { throw InvalidManifest(reason); }

std::string text(std::uint64_t value) { return std::to_string(value); }

void check_bytes(std::uint64_t bytes) {
  if (bytes > kManifestBytesMax) {
    refuse("has " + text(bytes) + " bytes, the limit is " + text(kManifestBytesMax));
  }
}

// A bound of all checksums together: each takes its digits, quotes and a sign behind it.
std::size_t checksums_max(std::size_t text_bytes) { return text_bytes / (kChecksumDigits + 3) + 1; }

std::optional<std::uint32_t> checksum_of(std::string_view digits) {
  if (digits.size() != kChecksumDigits) return std::nullopt;
  std::uint32_t value = 0;
  for (const char digit : digits) {
    if (digit >= '0' && digit <= '9') {
      value = value << 4 | static_cast<std::uint32_t>(digit - '0');
    } else if (digit >= 'a' && digit <= 'f') {
      value = value << 4 | static_cast<std::uint32_t>(digit - 'a' + 10);
    } else {
      return std::nullopt;
    }
  }
  return value;
}

// What a manifest says, of which some may be absent.
struct Members {
  std::optional<std::uint64_t> version;
  std::optional<std::uint64_t> chunk_bytes;
  std::uint64_t form = 0;
  bool has_files = false;
};

class ManifestParser {
 public:
  ManifestParser(std::span<char> json, std::uint32_t* checksums, std::vector<ManifestFile>& files)
      : scanner_(json), checksums_(checksums), files_(files) {}

  Members parse();

 private:
  void parse_member(std::string_view name);
  void parse_files();
  void parse_file();
  [[nodiscard]] std::string_view parse_name();
  [[nodiscard]] std::span<const std::uint32_t> parse_checksums();
  void refuse_repeated_files() const;

  JsonScanner scanner_;
  std::uint32_t* checksums_;  // where the next one goes
  std::vector<ManifestFile>& files_;
  Members members_;
};

Members ManifestParser::parse() {
  try {
    scanner_.members([this](std::string_view name) { parse_member(name); });
    scanner_.expect_end();
  } catch (const JsonFault& fault) {
    refuse(fault.what());
  }
  if (!members_.version || !members_.chunk_bytes || !members_.has_files) {
    refuse("lacks version, chunk_bytes or files");
  }
  if (*members_.version == 0 || *members_.version > kManifestVersionMax) {
    refuse("has version " + text(*members_.version) + ", known are 1 to " +
           text(kManifestVersionMax));
  }
  if (members_.form > kManifestFormMax) {
    refuse("has form " + text(members_.form) + ", known are 0 to " + text(kManifestFormMax));
  }
  if (*members_.chunk_bytes != kChunkBytes) {
    refuse("has chunks of " + text(*members_.chunk_bytes) + " bytes, not " + text(kChunkBytes));
  }
  refuse_repeated_files();
  return members_;
}

void ManifestParser::parse_member(std::string_view name) {
  if (name == "version") {
    members_.version = scanner_.integer(INT64_MAX);
  } else if (name == "chunk_bytes") {
    members_.chunk_bytes = scanner_.integer(INT64_MAX);
  } else if (name == "form") {
    members_.form = scanner_.integer(INT64_MAX);
  } else if (name == "files") {
    members_.has_files = true;
    parse_files();
  } else {
    scanner_.skip(1);
  }
}

void ManifestParser::parse_files() {
  scanner_.expect('[');
  if (scanner_.take(']')) return;
  do {
    if (files_.size() == kManifestFilesMax) {
      refuse("has more than " + text(kManifestFilesMax) + " files");
    }
    parse_file();
  } while (scanner_.take(','));
  scanner_.expect(']');
}

void ManifestParser::parse_file() {
  ManifestFile file{};
  bool has_size = false;
  bool has_checksums = false;
  scanner_.members([&](std::string_view name) {
    if (name == "name") {
      file.name = parse_name();
    } else if (name == "size_bytes") {
      file.size_bytes = scanner_.integer(INT64_MAX);
      has_size = true;
    } else if (name == "crc32c") {
      file.crc32c = parse_checksums();
      has_checksums = true;
    } else {
      scanner_.skip(3);
    }
  });
  if (file.name.empty() || !has_size || !has_checksums) {
    refuse("has a file without name, size_bytes or crc32c");
  }
  if (file.crc32c.size() != chunk_count(file.size_bytes)) {
    refuse("has " + text(file.crc32c.size()) + " checksums for " + std::string(file.name) + ", " +
           text(file.size_bytes) + " bytes");
  }
  files_.push_back(file);
}

std::string_view ManifestParser::parse_name() {
  const std::string_view name = scanner_.string();
  if (!is_plain_name(name, kManifestNameBytesMax)) {
    refuse("has a file whose name is none of a file in its folder");
  }
  return name;
}

std::span<const std::uint32_t> ManifestParser::parse_checksums() {
  std::uint32_t* const begin = checksums_;
  scanner_.expect('[');
  if (scanner_.take(']')) return {};
  do {
    const auto checksum = checksum_of(scanner_.string());
    if (!checksum) refuse("has a checksum that is not 8 hexadecimal digits");
    *checksums_++ = *checksum;
  } while (scanner_.take(','));
  scanner_.expect(']');
  return {begin, static_cast<std::size_t>(checksums_ - begin)};
}

void ManifestParser::refuse_repeated_files() const {
  std::vector<std::string_view> names;
  names.reserve(files_.size());
  for (const ManifestFile& file : files_) names.push_back(file.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) refuse("lists " + std::string(*twice) + " twice");
}

}  // namespace

Manifest::Manifest(std::unique_ptr<char[]> json, std::size_t json_bytes)
    : text_(std::move(json)),
      checksums_(std::make_unique_for_overwrite<std::uint32_t[]>(checksums_max(json_bytes))) {
  const Members members =
      ManifestParser({text_.get(), json_bytes}, checksums_.get(), files_).parse();
  version_ = *members.version;
  form_ = members.form;
}

Manifest Manifest::read(const std::filesystem::path& path, const SystemCalls& calls) {
  const BufferedFile file(path, calls);
  check_bytes(file.size());
  const auto bytes = static_cast<std::size_t>(file.size());
  auto json = std::make_unique_for_overwrite<char[]>(bytes);
  file.read(0, std::as_writable_bytes(std::span(json.get(), bytes)));
  return {std::move(json), bytes};
}

Manifest Manifest::parse(std::span<const std::byte> bytes) {
  check_bytes(bytes.size());
  auto json = std::make_unique_for_overwrite<char[]>(bytes.size());
  if (!bytes.empty()) std::memcpy(json.get(), bytes.data(), bytes.size());
  return {std::move(json), bytes.size()};
}

}  // namespace brisk
