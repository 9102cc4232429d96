#include "brisk/weight_index.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>

#include "brisk/buffered_file.hpp"
#include "file_name.hpp"
#include "json_scanner.hpp"
#include "repeated_name.hpp"

namespace brisk {
namespace {

constexpr std::string_view kMap = "weight_map";
constexpr std::string_view kSuffix = ".safetensors";

[[noreturn]] void refuse(const std::string& reason) { throw InvalidIndex(reason); }

std::string text(std::uint64_t value) { return std::to_string(value); }

void check_bytes(std::uint64_t bytes) {
  if (bytes > kIndexBytesMax) {
    refuse("has " + text(bytes) + " bytes, the limit is " + text(kIndexBytesMax));
  }
}

class IndexParser {
 public:
  IndexParser(std::span<char> json, std::vector<WeightIndex::Entry>& tensors,
              std::vector<std::string_view>& files)
      : scanner_(json), tensors_(tensors), files_(files) {}

  void parse();

 private:
  void parse_map();
  void parse_entry();
  [[nodiscard]] std::uint32_t number_of(std::string_view file);

  JsonScanner scanner_;
  std::vector<WeightIndex::Entry>& tensors_;
  std::vector<std::string_view>& files_;
  std::unordered_map<std::string_view, std::uint32_t> numbers_;  // by file
};

void IndexParser::parse() {
  try {
    scanner_.members([this](std::string_view name) {
      if (name == kMap) {
        parse_map();
      } else {
        scanner_.skip(1);
      }
    });
    scanner_.expect_end();
  } catch (const JsonFault& fault) {
    refuse(fault.what());
  }
  if (tensors_.empty()) refuse("has no weight_map");
  const std::size_t first = first_repeated(
      tensors_.size(), [this](std::size_t number) { return tensors_[number].tensor; });
  if (first < tensors_.size()) refuse("names one tensor twice");
}

void IndexParser::parse_map() {
  scanner_.expect('{');
  if (scanner_.take('}')) return;
  do {
    if (tensors_.size() == kIndexTensorsMax) {
      refuse("names more than " + text(kIndexTensorsMax) + " tensors");
    }
    parse_entry();
  } while (scanner_.take(','));
  scanner_.expect('}');
}

void IndexParser::parse_entry() {
  const std::string_view tensor = scanner_.string();
  if (tensor.empty() || tensor.size() > kIndexNameBytesMax) {
    refuse("has a tensor name of " + text(tensor.size()) + " bytes, allowed are 1 to " +
           text(kIndexNameBytesMax));
  }
  scanner_.expect(':');
  tensors_.push_back({.tensor = tensor, .file = number_of(scanner_.string())});
}

std::uint32_t IndexParser::number_of(std::string_view file) {
  // One after another they are mostly the same.
  if (!tensors_.empty() && files_[tensors_.back().file] == file) return tensors_.back().file;
  const auto known = numbers_.find(file);
  if (known != numbers_.end()) return known->second;
  if (!is_plain_name(file, kIndexFileNameBytesMax) || !file.ends_with(kSuffix)) {
    refuse("names a file that is no " + std::string(kSuffix) + " file in its folder");
  }
  if (files_.size() == kIndexFilesMax) {
    refuse("names more than " + text(kIndexFilesMax) + " files");
  }
  const auto number = static_cast<std::uint32_t>(files_.size());
  files_.push_back(file);
  numbers_.emplace(file, number);
  return number;
}

}  // namespace

WeightIndex::WeightIndex(std::unique_ptr<char[]> json, std::size_t json_bytes)
    : text_(std::move(json)) {
  IndexParser({text_.get(), json_bytes}, tensors_, files_).parse();
}

WeightIndex WeightIndex::read(const std::filesystem::path& path, const SystemCalls& calls) {
  const BufferedFile file(path, calls);
  check_bytes(file.size());
  const auto bytes = static_cast<std::size_t>(file.size());
  auto json = std::make_unique_for_overwrite<char[]>(bytes);
  file.read(0, std::as_writable_bytes(std::span(json.get(), bytes)));
  return {std::move(json), bytes};
}

WeightIndex WeightIndex::parse(std::span<const std::byte> bytes) {
  check_bytes(bytes.size());
  auto json = std::make_unique_for_overwrite<char[]>(bytes.size());
  if (!bytes.empty()) std::memcpy(json.get(), bytes.data(), bytes.size());
  return {std::move(json), bytes.size()};
}

}  // namespace brisk
