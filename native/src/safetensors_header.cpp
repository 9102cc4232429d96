#include "brisk/safetensors_header.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>

#include "brisk/buffered_file.hpp"
#include "json_scanner.hpp"
#include "repeated_name.hpp"

namespace brisk {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";

constexpr std::array<Dtype, 22> kDtypes{{
    {"BF16", 16},   {"F16", 16},        {"F32", 32},        {"F64", 64},    {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6}, {"F4", 4},          {"I8", 8},          {"I16", 16},    {"I32", 32},
    {"I64", 64},    {"U8", 8},          {"U16", 16},        {"U32", 32},    {"U64", 64},
    {"BOOL", 8},    {"C64", 64},
}};

[[noreturn]] void refuse(const std::string& reason) { throw InvalidHeader(std::nullopt, reason); }

[[noreturn]] void refuse(std::string_view tensor, const std::string& reason) {
  throw InvalidHeader(std::string(tensor), reason);
}

std::string text(std::uint64_t value) { return std::to_string(value); }

// Returns the length of the JSON in a file that begins with `prefix`.
std::uint64_t json_bytes(std::span<const std::byte> prefix, std::uint64_t file_bytes) {
  if (file_bytes < kHeaderLengthBytes || prefix.size() < kHeaderLengthBytes) {
    refuse("truncated: " + text(file_bytes) + " bytes cannot hold a header");
  }
  std::uint64_t length = 0;
  for (unsigned byte = 0; byte < kHeaderLengthBytes; ++byte) {
    length |= std::to_integer<std::uint64_t>(prefix[byte]) << (8 * byte);
  }
  if (length > kHeaderBytesMax) {
    refuse("its header would have " + text(length) + " bytes, the limit is " +
           text(kHeaderBytesMax));
  }
  if (length > file_bytes - kHeaderLengthBytes) {
    refuse("truncated: a header of " + text(length) + " bytes in a file of " + text(file_bytes));
  }
  return length;
}

const Dtype* find_dtype(std::string_view name) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(),
                                  [=](const Dtype& one) { return one.name == name; });
  return found == kDtypes.end() ? nullptr : &*found;
}

// A bound of all shapes together: a dimension takes a digit and a sign behind it.
std::size_t dimensions_max(std::uint64_t json_length) {
  return std::min(static_cast<std::size_t>(json_length / 2), kHeaderTensorsMax * kHeaderRankMax);
}

// Throws unless type and shape make up exactly the tensor's bytes.
void check_size(const HeaderTensor& tensor) {
  std::uint64_t bits = tensor.dtype->bits;
  for (const std::uint64_t dimension : tensor.shape) {
    if (dimension != 0 && bits > kHeaderIntegerMax / dimension) {
      refuse(tensor.name, "has a shape too large for any file");
    }
    bits *= dimension;
  }
  if (bits % 8 != 0) refuse(tensor.name, "ends within a byte");
  if (tensor.begin > tensor.end || tensor.end - tensor.begin != bits / 8) {
    refuse(tensor.name, "takes " + text(bits / 8) + " bytes by type and shape, but lies at " +
                            text(tensor.begin) + " to " + text(tensor.end));
  }
}

// Fills the parts of a header from its text.
class HeaderParser {
 public:
  HeaderParser(std::span<char> json, std::uint64_t* dimensions, std::vector<HeaderTensor>& tensors,
               SafetensorsHeader::Metadata& metadata)
      : scanner_(json), dimensions_(dimensions), tensors_(tensors), metadata_(metadata) {}

  void parse() {
    try {
      parse_members();
    } catch (const JsonFault& fault) {
      throw InvalidHeader(tensor_, fault.what());
    }
    refuse_repeated_names();
  }

 private:
  void parse_members();
  void parse_metadata();
  void parse_tensor(std::string_view name);
  void parse_fields(HeaderTensor& tensor);
  void parse_dtype(HeaderTensor& tensor);
  void parse_shape(HeaderTensor& tensor);
  void parse_offsets(HeaderTensor& tensor);
  void refuse_repeated_names();

  JsonScanner scanner_;
  std::uint64_t* dimensions_;  // where the next shape goes
  std::vector<HeaderTensor>& tensors_;
  SafetensorsHeader::Metadata& metadata_;
  std::optional<std::string> tensor_;  // the one at hand
  bool has_metadata_ = false;
};

void HeaderParser::parse_members() {
  scanner_.expect('{');
  if (!scanner_.take('}')) {
    do {
      const std::string_view name = scanner_.string();
      scanner_.expect(':');
      if (name == kMetadataKey) {
        parse_metadata();
      } else {
        parse_tensor(name);
      }
    } while (scanner_.take(','));
    scanner_.expect('}');
  }
  scanner_.expect_end();
}

void HeaderParser::parse_metadata() {
  if (has_metadata_) refuse("has its metadata twice");
  has_metadata_ = true;
  scanner_.expect('{');
  if (scanner_.take('}')) return;
  do {
    if (metadata_.size() == kHeaderMetadataMax) {
      refuse("has more than " + text(kHeaderMetadataMax) + " entries of metadata");
    }
    const std::string_view key = scanner_.string();
    scanner_.expect(':');
    metadata_.emplace_back(key, scanner_.string());
  } while (scanner_.take(','));
  scanner_.expect('}');
}

void HeaderParser::parse_tensor(std::string_view name) {
  if (tensors_.size() == kHeaderTensorsMax) {
    refuse("has more than " + text(kHeaderTensorsMax) + " tensors");
  }
  if (name.empty() || name.size() > kHeaderNameBytesMax) {
    refuse("has a tensor name of " + text(name.size()) + " bytes, allowed are 1 to " +
           text(kHeaderNameBytesMax));
  }
  tensor_ = name;
  HeaderTensor tensor{.name = name, .dtype = nullptr, .shape = {}, .begin = 0, .end = 0};
  parse_fields(tensor);
  check_size(tensor);
  tensors_.push_back(tensor);
  tensor_.reset();
}

void HeaderParser::parse_fields(HeaderTensor& tensor) {
  constexpr std::array<std::string_view, 3> kFields{"dtype", "shape", "data_offsets"};
  std::array<bool, kFields.size()> seen{};
  scanner_.expect('{');
  do {
    const std::string_view key = scanner_.string();
    scanner_.expect(':');
    const auto field =
        static_cast<std::size_t>(std::find(kFields.begin(), kFields.end(), key) - kFields.begin());
    if (field == kFields.size())
      refuse(tensor.name, "has a field beside dtype, shape and data_offsets");
    if (std::exchange(seen[field], true)) refuse(tensor.name, "has a field twice");
    if (field == 0) parse_dtype(tensor);
    if (field == 1) parse_shape(tensor);
    if (field == 2) parse_offsets(tensor);
  } while (scanner_.take(','));
  scanner_.expect('}');
  if (seen != std::array{true, true, true})
    refuse(tensor.name, "lacks dtype, shape or data_offsets");
}

void HeaderParser::parse_dtype(HeaderTensor& tensor) {
  tensor.dtype = find_dtype(scanner_.string());
  if (tensor.dtype == nullptr) refuse(tensor.name, "has an unknown type");
}

void HeaderParser::parse_shape(HeaderTensor& tensor) {
  std::uint64_t* const begin = dimensions_;
  scanner_.expect('[');
  if (scanner_.take(']')) return;
  std::size_t rank = 0;
  do {
    if (rank == kHeaderRankMax) {
      refuse(tensor.name, "has more than " + text(kHeaderRankMax) + " dimensions");
    }
    *dimensions_++ = scanner_.integer(kHeaderIntegerMax);
    ++rank;
  } while (scanner_.take(','));
  scanner_.expect(']');
  tensor.shape = {begin, rank};
}

void HeaderParser::parse_offsets(HeaderTensor& tensor) {
  scanner_.expect('[');
  tensor.begin = scanner_.integer(kHeaderIntegerMax);
  scanner_.expect(',');
  tensor.end = scanner_.integer(kHeaderIntegerMax);
  scanner_.expect(']');
}

void HeaderParser::refuse_repeated_names() {
  const std::size_t first =
      first_repeated(tensors_.size(), [this](std::size_t number) { return tensors_[number].name; });
  if (first < tensors_.size()) refuse(tensors_[first].name, "is there twice");
  std::vector<std::string_view> keys;
  for (const auto& entry : metadata_) keys.push_back(entry.first);
  std::sort(keys.begin(), keys.end());
  if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) {
    refuse("has a key of its metadata twice");
  }
}

}  // namespace

InvalidHeader::InvalidHeader(std::optional<std::string> tensor, const std::string& reason)
    : std::runtime_error(tensor ? "tensor " + *tensor + ": " + reason : reason),
      tensor_(std::move(tensor)),
      reason_(reason) {}

std::span<const Dtype> dtypes() noexcept { return kDtypes; }

SafetensorsHeader::SafetensorsHeader(std::unique_ptr<char[]> json, std::uint64_t length,
                                     std::uint64_t file_bytes)
    : text_(std::move(json)),
      dimensions_(std::make_unique_for_overwrite<std::uint64_t[]>(dimensions_max(length))),
      data_offset_(kHeaderLengthBytes + length),
      file_bytes_(file_bytes) {
  HeaderParser({text_.get(), static_cast<std::size_t>(length)}, dimensions_.get(), tensors_,
               metadata_)
      .parse();
  order_and_check_cover();
  check_padding();
}

SafetensorsHeader SafetensorsHeader::read(const std::filesystem::path& path,
                                          const SystemCalls& calls) {
  const BufferedFile file(path, calls);
  std::array<std::byte, kHeaderLengthBytes> prefix{};
  const std::uint64_t there = std::min<std::uint64_t>(file.size(), prefix.size());
  file.read(0, std::span(prefix).first(static_cast<std::size_t>(there)));
  const std::uint64_t length = json_bytes(prefix, file.size());
  auto json = std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(length));
  file.read(kHeaderLengthBytes,
            std::as_writable_bytes(std::span(json.get(), static_cast<std::size_t>(length))));
  return {std::move(json), length, file.size()};
}

SafetensorsHeader SafetensorsHeader::parse(std::span<const std::byte> bytes,
                                           std::uint64_t file_bytes) {
  const std::uint64_t length = json_bytes(bytes, file_bytes);
  if (bytes.size() - kHeaderLengthBytes < length) {
    refuse("truncated: a header of " + text(length) + " bytes in " + text(bytes.size()));
  }
  auto json = std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(length));
  std::memcpy(json.get(), bytes.data() + kHeaderLengthBytes, static_cast<std::size_t>(length));
  return {std::move(json), length, file_bytes};
}

void SafetensorsHeader::order_and_check_cover() {
  const auto before = [](const HeaderTensor& a, const HeaderTensor& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  };
  if (!std::is_sorted(tensors_.begin(), tensors_.end(), before)) {
    std::stable_sort(tensors_.begin(), tensors_.end(), before);
  }
  std::uint64_t reached = 0;
  for (const HeaderTensor& tensor : tensors_) {
    if (tensor.begin != reached) {
      refuse(tensor.name, (tensor.begin > reached ? "leaves a hole: begins at "
                                                  : "overlaps the one before: begins at ") +
                              text(tensor.begin) + ", the one before ends at " + text(reached));
    }
    reached = tensor.end;
  }
  const std::uint64_t data_bytes = file_bytes_ - data_offset_;
  if (reached > data_bytes) {
    refuse("truncated: its tensors take " + text(reached) + " bytes, " + text(data_bytes) +
           " are there");
  }
  if (reached < data_bytes) {
    refuse("has " + text(data_bytes - reached) + " bytes that belong to no tensor");
  }
}

// Padding is hidden from whoever looks at the model: it must not be a place to hide things.
void SafetensorsHeader::check_padding() {
  stored_form_ = std::find(metadata_.begin(), metadata_.end(),
                           Metadata::value_type(kFormKey, kForm)) != metadata_.end();
  for (const HeaderTensor& tensor : tensors_) {
    if (!is_padding(tensor)) continue;
    if (tensor.dtype->name != "U8" || tensor.shape.size() != 1 ||
        tensor.end - tensor.begin >= kStoredAlignment) {
      refuse(tensor.name, "is padding, which must be U8 of one dimension and fewer than " +
                              text(kStoredAlignment) + " bytes");
    }
  }
}

}  // namespace brisk
