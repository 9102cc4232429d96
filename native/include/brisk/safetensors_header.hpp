// The header of a safetensors file, which comes from anywhere and is not to be believed.
//
// The file is an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes.
// All that the safetensors library refuses is refused here too, and more (ADR 0004). A header is
// refused before it costs time or memory: within the limits below, neither can grow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "brisk/system_calls.hpp"

namespace brisk {

inline constexpr std::uint64_t kHeaderLengthBytes = 8;
inline constexpr std::uint64_t kHeaderBytesMax = std::uint64_t{8} << 20;
inline constexpr std::size_t kHeaderTensorsMax = 65'536;
inline constexpr std::size_t kHeaderNameBytesMax = 512;  // of a tensor, in UTF-8
inline constexpr std::size_t kHeaderRankMax = 16;
inline constexpr std::size_t kHeaderMetadataMax = 10'000;      // entries
inline constexpr std::uint64_t kHeaderIntegerMax = INT64_MAX;  // file offsets are signed

// The stored form (ADR 0006) fills its gaps with tensors that are no part of the model. They count
// as such in files whose metadata says that they are of the stored form, and nowhere else.
inline constexpr std::string_view kFormKey = "brisk_form";
inline constexpr std::string_view kForm = "1";
inline constexpr std::string_view kPaddingPrefix = "__brisk_padding__.";
inline constexpr std::uint64_t kStoredAlignment = 256;  // a gap has fewer bytes

// The header is not one. `tensor` is the one at fault, if the fault lies in one.
class InvalidHeader : public std::runtime_error {
 public:
  InvalidHeader(std::optional<std::string> tensor, const std::string& reason);

  [[nodiscard]] const std::optional<std::string>& tensor() const noexcept { return tensor_; }
  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }

 private:
  std::optional<std::string> tensor_;
  std::string reason_;
};

// A type of elements, as safetensors 0.8 spells it.
struct Dtype {
  std::string_view name;
  unsigned bits;  // of one element; those of 4 and 6 are packed
};

// All of them.
[[nodiscard]] std::span<const Dtype> dtypes() noexcept;

// One tensor of a header. The views are valid as long as the header.
struct HeaderTensor {
  std::string_view name;  // UTF-8; may hold any character, NUL too
  const Dtype* dtype;
  std::span<const std::uint64_t> shape;
  std::uint64_t begin;  // of its bytes, counted from the end of the header
  std::uint64_t end;
};

// A header that was checked completely against its file's size: the tensors follow one another
// without hole or overlap, from the end of the header to the end of the file.
// Movable, not copyable. Owns its text, which the tensors' names are views of.
class SafetensorsHeader {
 public:
  using Metadata = std::vector<std::pair<std::string_view, std::string_view>>;

  // Reads and parses the header of a file. Throws InvalidHeader, ShortRead (the file shrinks
  // meanwhile) and what DirectFile throws when opening.
  [[nodiscard]] static SafetensorsHeader read(const std::filesystem::path& path,
                                              const SystemCalls& calls = {});
  // Parses the header that `bytes`, the beginning of a file of `file_bytes`, holds: at least all
  // of the header. Throws InvalidHeader.
  [[nodiscard]] static SafetensorsHeader parse(std::span<const std::byte> bytes,
                                               std::uint64_t file_bytes);

  // In the order of their bytes; those without bytes in the order of the header. Padding is among
  // them.
  [[nodiscard]] std::span<const HeaderTensor> tensors() const noexcept { return tensors_; }
  // In the order of the header.
  [[nodiscard]] const Metadata& metadata() const noexcept { return metadata_; }
  // True if the file says that it is of the stored form.
  [[nodiscard]] bool is_stored_form() const noexcept { return stored_form_; }
  // True if `tensor` fills a gap of the stored form.
  [[nodiscard]] bool is_padding(const HeaderTensor& tensor) const noexcept {
    return stored_form_ && tensor.name.starts_with(kPaddingPrefix);
  }
  // Where the tensors' bytes begin in the file.
  [[nodiscard]] std::uint64_t data_offset() const noexcept { return data_offset_; }
  // The size of the file that the header was checked against.
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_bytes_; }

 private:
  SafetensorsHeader(std::unique_ptr<char[]> text, std::uint64_t text_bytes,
                    std::uint64_t file_bytes);
  void order_and_check_cover();
  void check_padding();

  std::unique_ptr<char[]> text_;
  std::unique_ptr<std::uint64_t[]> dimensions_;  // of all shapes, one after another
  std::vector<HeaderTensor> tensors_;
  Metadata metadata_;
  std::uint64_t data_offset_;
  std::uint64_t file_bytes_;
  bool stored_form_ = false;
};

}  // namespace brisk
