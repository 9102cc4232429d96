#include "brisk/device_plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace brisk {
namespace {

bool fits(std::uint64_t offset, std::uint64_t size, std::uint64_t whole) {
  return offset <= whole && size <= whole - offset;
}

void check(std::span<const Piece> pieces, std::span<const std::uint64_t> source_bytes,
           std::span<const std::uint64_t> allocation_bytes) {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const std::string which = "piece " + std::to_string(i);
    if (piece.source >= source_bytes.size()) {
      throw std::invalid_argument(which + " is of source " + std::to_string(piece.source) +
                                  ", there are " + std::to_string(source_bytes.size()));
    }
    if (piece.allocation >= allocation_bytes.size()) {
      throw std::invalid_argument(which + " goes to allocation " +
                                  std::to_string(piece.allocation) + ", there are " +
                                  std::to_string(allocation_bytes.size()));
    }
    if (!fits(piece.offset, piece.size, source_bytes[piece.source])) {
      throw std::invalid_argument(which + " ends behind its source");
    }
    if (!fits(piece.allocation_offset, piece.size, allocation_bytes[piece.allocation])) {
      throw std::invalid_argument(which + " ends behind its allocation");
    }
  }
}

class Planner {
 public:
  Planner(std::span<const std::uint64_t> source_bytes, std::size_t read_bytes)
      : source_bytes_(source_bytes), read_bytes_(read_bytes), tasks_of_(source_bytes.size()) {}

  void add(const Piece& piece) {
    plan_.piece_bytes += piece.size;
    std::size_t needed = plan_.tasks_needed.empty() ? 0 : plan_.tasks_needed.back();
    for (std::uint64_t done = 0; done < piece.size;) {
      const std::uint64_t begin = piece.offset + done;
      const std::size_t index = task_of(piece.source, begin / kChunkBytes);
      const std::uint64_t chunk_end = (begin / kChunkBytes + 1) * kChunkBytes;
      const std::uint64_t size = std::min(piece.size - done, chunk_end - begin);
      PlannedTask& task = plan_.tasks[index];
      append(task, {.task_offset = static_cast<std::size_t>(begin - task.read.offset),
                    .size = static_cast<std::size_t>(size),
                    .allocation = piece.allocation,
                    .allocation_offset = piece.allocation_offset + done});
      needed = std::max(needed, index + 1);
      done += size;
    }
    plan_.tasks_needed.push_back(needed);
  }

  [[nodiscard]] DevicePlan take() { return std::move(plan_); }

 private:
  // The task that reads this chunk: the one there is, else the last one made longer, else a new
  // one.
  std::size_t task_of(std::uint32_t source, std::uint64_t chunk) {
    const auto [found, is_new] = tasks_of_[source].try_emplace(chunk, plan_.tasks.size());
    if (!is_new) return found->second;
    const std::uint64_t offset = chunk * kChunkBytes;
    const auto size = static_cast<std::size_t>(
        std::min<std::uint64_t>(kChunkBytes, source_bytes_[source] - offset));
    if (!plan_.tasks.empty()) {
      ReadTask& last = plan_.tasks.back().read;
      if (last.file == source && last.offset + last.size == offset &&
          last.size + size <= read_bytes_) {
        last.size += size;
        return found->second = plan_.tasks.size() - 1;
      }
    }
    plan_.tasks.push_back({.read = {.file = source, .offset = offset, .size = size}, .parts = {}});
    return found->second;
  }

  // One copy for bytes that lie together at both ends: a copy costs microseconds however short.
  static void append(PlannedTask& task, const PlannedPart& part) {
    if (!task.parts.empty()) {
      PlannedPart& last = task.parts.back();
      if (last.allocation == part.allocation && last.task_offset + last.size == part.task_offset &&
          last.allocation_offset + last.size == part.allocation_offset) {
        last.size += part.size;
        return;
      }
    }
    task.parts.push_back(part);
  }

  const std::span<const std::uint64_t> source_bytes_;
  const std::size_t read_bytes_;
  std::vector<std::unordered_map<std::uint64_t, std::size_t>> tasks_of_;  // by source and chunk
  DevicePlan plan_;
};

}  // namespace

std::size_t DevicePlan::pieces_done(std::size_t tasks_done) const {
  const auto end = std::upper_bound(tasks_needed.begin(), tasks_needed.end(), tasks_done);
  return static_cast<std::size_t>(end - tasks_needed.begin());
}

std::vector<std::size_t> DevicePlan::milestones(std::span<const std::size_t> pieces) const {
  if (!std::is_sorted(pieces.begin(), pieces.end()) ||
      (!pieces.empty() && pieces.back() > tasks_needed.size())) {
    throw std::invalid_argument("milestones must rise up to the number of pieces");
  }
  std::vector<std::size_t> counts;
  counts.reserve(pieces.size());
  for (const std::size_t count : pieces) counts.push_back(count > 0 ? tasks_needed[count - 1] : 0);
  return counts;
}

DevicePlan plan_for_devices(std::span<const Piece> pieces,
                            std::span<const std::uint64_t> source_bytes,
                            std::span<const std::uint64_t> allocation_bytes,
                            std::size_t read_bytes) {
  check(pieces, source_bytes, allocation_bytes);
  Planner planner(source_bytes, read_bytes);
  for (const Piece& piece : pieces) planner.add(piece);
  return planner.take();
}

}  // namespace brisk
