// brisk.json, the manifest beside a model's files: their sizes and the checksums of their chunks.
//
// It comes with the model, from anywhere, and is not to be believed: all of it is checked here
// within the limits below, in time and memory proportional to its length. Members that only its
// writer knows are stepped over; what they may hold is bounded in src/json_scanner.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "brisk/system_calls.hpp"

namespace brisk {

inline constexpr std::uint64_t kManifestBytesMax = std::uint64_t{64} << 20;
inline constexpr std::size_t kManifestFilesMax = 2'048;
inline constexpr std::size_t kManifestNameBytesMax = 255;  // of a file, in UTF-8
inline constexpr std::uint64_t kManifestVersionMax = 2;
inline constexpr std::uint64_t kManifestFormMax = 1;

// The manifest is damaged, or of a version or form that we do not know.
class InvalidManifest : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One file of a manifest. The views are valid as long as the manifest.
struct ManifestFile {
  std::string_view name;  // of a file in the manifest's own folder
  std::uint64_t size_bytes;
  std::span<const std::uint32_t> crc32c;  // of each chunk of kChunkBytes
};

// A manifest that was checked completely, by itself: whether the files are so is for others to see.
// Movable, not copyable. Owns its text, which the files' names are views of.
class Manifest {
 public:
  // Throws InvalidManifest, ShortRead (the file shrinks meanwhile) and what DirectFile throws when
  // opening.
  [[nodiscard]] static Manifest read(const std::filesystem::path& path,
                                     const SystemCalls& calls = {});
  // Throws InvalidManifest.
  [[nodiscard]] static Manifest parse(std::span<const std::byte> bytes);

  // 1 or 2: what was written before there was a stored form has 1.
  [[nodiscard]] std::uint64_t version() const noexcept { return version_; }
  // 0: the files are as they came. 1: the weights are in the stored form (ADR 0006).
  [[nodiscard]] std::uint64_t form() const noexcept { return form_; }
  // In the order of the manifest; each name is there once.
  [[nodiscard]] std::span<const ManifestFile> files() const noexcept { return files_; }

 private:
  Manifest(std::unique_ptr<char[]> text, std::size_t text_bytes);

  std::unique_ptr<char[]> text_;
  std::unique_ptr<std::uint32_t[]> checksums_;  // of all files, one after another
  std::vector<ManifestFile> files_;
  std::uint64_t version_ = 0;
  std::uint64_t form_ = 0;
};

}  // namespace brisk
