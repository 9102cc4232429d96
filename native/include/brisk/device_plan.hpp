// Which reads bring the wanted pieces of files to their places in devices' memory. No Python and no
// driver in here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "brisk/read_plan.hpp"

namespace brisk {

// A run of bytes of a source, and where it goes. A source is a file, or a range of host memory.
struct Piece {
  std::uint32_t source;
  std::uint64_t offset;  // in the source, in bytes
  std::uint64_t size;    // may be 0
  std::uint32_t allocation;
  std::uint64_t allocation_offset;
};

// What a task holds of one piece.
struct PlannedPart {
  std::size_t task_offset;  // from the task's first byte
  std::size_t size;
  std::uint32_t allocation;
  std::uint64_t allocation_offset;
};

struct PlannedTask {
  ReadTask read;
  std::vector<PlannedPart> parts;  // at least one
};

// Only chunks that a piece touches are read, each once and whole, in the order in which the pieces
// need them first; neighbouring ones by one read.
struct DevicePlan {
  std::vector<PlannedTask> tasks;
  // By piece: how many leading tasks must be done until all pieces up to this one are there.
  std::vector<std::size_t> tasks_needed;
  std::uint64_t piece_bytes = 0;

  // How many leading pieces are there once so many leading tasks are done.
  [[nodiscard]] std::size_t pieces_done(std::size_t tasks_done) const;
  // For rising counts of pieces the counts of tasks. Throws std::invalid_argument if they do not
  // rise, or there are fewer pieces.
  [[nodiscard]] std::vector<std::size_t> milestones(std::span<const std::size_t> pieces) const;
};

// Pieces must not overlap in their allocations. Throws std::invalid_argument for a piece beyond its
// source or its allocation, with its number.
[[nodiscard]] DevicePlan plan_for_devices(std::span<const Piece> pieces,
                                          std::span<const std::uint64_t> source_bytes,
                                          std::span<const std::uint64_t> allocation_bytes,
                                          std::size_t read_bytes);

}  // namespace brisk
