#include "brisk/read_plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace brisk {
namespace {

void check_range(const char* name, unsigned value, unsigned most) {
  if (value >= 1 && value <= most) return;
  throw std::invalid_argument(std::string(name) + " must be between 1 and " + std::to_string(most) +
                              ", not " + std::to_string(value));
}

}  // namespace

unsigned reads_in_flight_max(const ReadOptions& options) noexcept {
  return options.engine == Engine::kUring ? options.threads * options.depth : options.threads;
}

void check(const ReadOptions& options) {
  check_range("threads", options.threads, kThreadsMax);
  check_range("depth", options.depth, kDepthMax);
  if (options.read_bytes % kChunkBytes == 0 && options.read_bytes >= kChunkBytes &&
      options.read_bytes <= kReadBytesMax) {
    return;
  }
  throw std::invalid_argument("read_bytes must be a multiple of " + std::to_string(kChunkBytes) +
                              " up to " + std::to_string(kReadBytesMax) + ", not " +
                              std::to_string(options.read_bytes));
}

void append_whole_file(std::vector<ReadTask>& tasks, std::uint32_t file, std::uint64_t file_bytes,
                       std::size_t read_bytes, std::span<const std::uint32_t> expected) {
  for (std::uint64_t offset = 0; offset < file_bytes; offset += read_bytes) {
    const auto size =
        static_cast<std::size_t>(std::min<std::uint64_t>(read_bytes, file_bytes - offset));
    ReadTask task{.file = file, .offset = offset, .size = size};
    if (!expected.empty()) {
      task.expected = expected.subspan(offset / kChunkBytes, task.chunks());
    }
    tasks.push_back(task);
  }
}

}  // namespace brisk
