// model.safetensors.index.json: which file of a checkpoint holds which tensor.
//
// It comes with the model, from anywhere, and is not to be believed: it is checked here within the
// limits below, by itself, in time and memory that follow from its length. Members that only its
// writer knows, such as `metadata`, are stepped over; what they may hold is bounded in
// src/json_scanner.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "brisk/system_calls.hpp"

namespace brisk {

inline constexpr std::uint64_t kIndexBytesMax = std::uint64_t{16} << 20;
inline constexpr std::size_t kIndexTensorsMax = 196'608;
inline constexpr std::size_t kIndexFilesMax = 1'024;
inline constexpr std::size_t kIndexNameBytesMax = 512;      // of a tensor, in UTF-8
inline constexpr std::size_t kIndexFileNameBytesMax = 255;  // in UTF-8

// The index is not one.
class InvalidIndex : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A checked index; whether the files hold what it says is for others to see. Movable, not copyable.
// Owns its text, which all names are views of.
class WeightIndex {
 public:
  struct Entry {
    std::string_view tensor;
    std::uint32_t file;  // its number among `files`
  };

  // Throws InvalidIndex, ShortRead (the file shrinks meanwhile) and what DirectFile throws when
  // opening.
  [[nodiscard]] static WeightIndex read(const std::filesystem::path& path,
                                        const SystemCalls& calls = {});
  // Throws InvalidIndex.
  [[nodiscard]] static WeightIndex parse(std::span<const std::byte> bytes);

  // In the order of the index; at least one, each name once.
  [[nodiscard]] std::span<const Entry> tensors() const noexcept { return tensors_; }
  // Names of files of the index's own folder, each once, in the order in which it names them.
  [[nodiscard]] std::span<const std::string_view> files() const noexcept { return files_; }

 private:
  WeightIndex(std::unique_ptr<char[]> text, std::size_t text_bytes);

  std::unique_ptr<char[]> text_;
  std::vector<Entry> tensors_;
  std::vector<std::string_view> files_;
};

}  // namespace brisk
