// The plan's promise: every wanted byte once to its place, by few reads, in the order of need.
#include "brisk/device_plan.hpp"

#include <algorithm>
#include <stdexcept>

#include "check.hpp"

namespace {

using brisk::DevicePlan;
using brisk::kChunkBytes;
using brisk::Piece;

constexpr std::uint64_t kChunk = kChunkBytes;

DevicePlan plan(const std::vector<Piece>& pieces, const std::vector<std::uint64_t>& files,
                std::size_t read_bytes = kChunkBytes,
                const std::vector<std::uint64_t>& allocations = {100 * kChunk, 100 * kChunk}) {
  return brisk::plan_for_devices(pieces, files, allocations, read_bytes);
}

// Whether the parts bring every byte of every piece to its place, once.
bool is_complete(const DevicePlan& found, const std::vector<Piece>& pieces) {
  std::uint64_t bytes = 0;
  for (const auto& task : found.tasks) {
    for (const auto& part : task.parts) {
      bytes += part.size;
      const bool wanted = std::any_of(pieces.begin(), pieces.end(), [&](const Piece& piece) {
        const std::uint64_t offset = task.read.offset + part.task_offset;
        return piece.source == task.read.file && piece.allocation == part.allocation &&
               offset >= piece.offset && offset + part.size <= piece.offset + piece.size &&
               offset - piece.offset == part.allocation_offset - piece.allocation_offset;
      });
      if (!wanted || part.task_offset + part.size > task.read.size) return false;
    }
  }
  return bytes == found.piece_bytes;
}

}  // namespace

TEST("only touched chunks are read, each once, though many pieces lie in it") {
  const std::vector<Piece> pieces{
      {0, 10, 20, 0, 0}, {0, 30, 5, 1, 7}, {0, 5 * kChunk + 1, 3, 0, 50}};
  const DevicePlan found = plan(pieces, {10 * kChunk});
  CHECK(found.tasks.size() == 2 && is_complete(found, pieces));
  CHECK(found.tasks[0].read.offset == 0 && found.tasks[1].read.offset == 5 * kChunk);
  CHECK(found.tasks[0].parts.size() == 2 && found.piece_bytes == 28);
}

TEST("a piece may span chunks and reads, and long reads join neighbours") {
  const std::vector<Piece> pieces{{0, kChunk / 2, 4 * kChunk, 0, 3}};
  CHECK(plan(pieces, {10 * kChunk}).tasks.size() == 5);
  const DevicePlan found = plan(pieces, {10 * kChunk}, 2 * kChunkBytes);
  CHECK(found.tasks.size() == 3 && is_complete(found, pieces));
  CHECK(found.tasks[0].read.size == 2 * kChunkBytes && found.tasks[2].read.size == kChunkBytes);
  CHECK(found.tasks[0].parts.size() == 1);
}

TEST("the last chunk of a file is as long as the file has it") {
  const std::vector<Piece> pieces{{0, kChunk, 7, 0, 0}};
  const DevicePlan found = plan(pieces, {kChunk + 7}, 2 * kChunkBytes);
  CHECK(found.tasks.size() == 1 && found.tasks[0].read.size == 7);
}

TEST("reads come in the order in which pieces need them, across files") {
  const std::vector<Piece> pieces{{1, 3 * kChunk, 5, 0, 0}, {0, 0, 5, 0, 10}, {1, 0, 5, 1, 0}};
  const DevicePlan found = plan(pieces, {4 * kChunk, 4 * kChunk}, 4 * kChunkBytes);
  CHECK(found.tasks.size() == 3 && is_complete(found, pieces));
  CHECK(found.tasks[0].read.file == 1 && found.tasks[0].read.offset == 3 * kChunk);
  CHECK(found.tasks[1].read.file == 0 && found.tasks[2].read.offset == 0);
}

TEST("pieces are there when the last read that any of them needs is done") {
  const std::vector<Piece> pieces{
      {0, 0, 3 * kChunk, 0, 0}, {0, kChunk, 5, 1, 0}, {0, 50, 0, 1, 0}, {0, 5 * kChunk, 1, 1, 9}};
  const DevicePlan found = plan(pieces, {10 * kChunk});
  CHECK((found.tasks_needed == std::vector<std::size_t>{3, 3, 3, 4}));
  CHECK(found.pieces_done(0) == 0 && found.pieces_done(2) == 0 && found.pieces_done(3) == 3);
  CHECK(found.pieces_done(4) == 4);
  const std::vector<std::size_t> wanted{0, 1, 3, 4};
  CHECK((found.milestones(wanted) == std::vector<std::size_t>{0, 3, 3, 4}));
  CHECK_THROWS(std::invalid_argument, found.milestones(std::vector<std::size_t>{2, 1}));
  CHECK_THROWS(std::invalid_argument, found.milestones(std::vector<std::size_t>{5}));
}

TEST("pieces of no bytes need no read") {
  const DevicePlan found = plan({{0, 0, 0, 0, 0}, {0, 9, 0, 1, 3}}, {9});
  CHECK(found.tasks.empty() && found.pieces_done(0) == 2);
}

TEST("a piece beyond its source, its allocation or all numbers is refused") {
  for (const Piece& bad : std::vector<Piece>{{1, 0, 1, 0, 0},
                                             {0, 0, 1, 2, 0},
                                             {0, 95, 6, 0, 0},
                                             {0, 101, 0, 0, 0},
                                             {0, UINT64_MAX, 2, 0, 0},
                                             {0, 2, UINT64_MAX, 0, 0},
                                             {0, 0, 10, 0, 91},
                                             {0, 0, 10, 0, UINT64_MAX - 5}}) {
    CHECK_THROWS(std::invalid_argument, plan({bad}, {100}, kChunkBytes, {100, 100}));
  }
}
