// Puts a new file together from ranges of others, as fast as the disk reads and writes: how a model
// gets its stored form. No Python in here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "brisk/whole_file.hpp"

namespace brisk {

// A file that bytes come from.
struct GatherSource {
  std::filesystem::path path;
  // What the CRC32C of each of its chunks must be; nullopt: not verified.
  std::optional<std::vector<std::uint32_t>> expected;
};

// A range of a source and where it goes.
struct GatherPiece {
  std::uint32_t source;  // index into the sources
  std::uint64_t offset;  // in the source
  std::uint64_t size;    // in bytes
  std::uint64_t target;  // offset in the new file
};

// The new file: `prefix`, then the pieces, and zeros wherever there is neither.
struct GatherPlan {
  std::span<const std::byte> prefix;
  std::vector<GatherPiece> pieces;  // by target, none over another one or over the prefix
  std::uint64_t size;               // of the new file
};

struct GatheredFile {
  std::vector<std::uint32_t> checksums;  // CRC32C of each chunk of the new file, as it was written
  bool direct_reads;                     // from every source
  bool direct_writes;
};

// Writes the new file `target`, whose contents are on the disk on return. Each thread reads, checks
// and writes one chunk of the target at a time, so memory is two chunks and a bit for each. Every
// byte of a source with `expected` is read once, also what no piece takes: what the pieces' parts
// sum up to is joined, so that a damaged chunk is found although no one reads it as a whole.
//
// Throws what the jobs of whole_file.hpp throw: ChecksumMismatch naming the source; ShortRead if a
// source ends before a piece does; std::invalid_argument for a plan that breaks the rules above,
// or takes bytes of a verified source twice. On any throw there is no `target`, unless it is the
// EEXIST for a `target` that was there before. The watch counts bytes of the target, and no tasks.
[[nodiscard]] GatheredFile gather_file(const std::filesystem::path& target, const GatherPlan& plan,
                                       const std::vector<GatherSource>& sources,
                                       const JobOptions& options);

}  // namespace brisk
