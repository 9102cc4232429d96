#include "brisk/whole_file.hpp"

#include <algorithm>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "brisk/crc32c.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/new_file.hpp"
#include "brisk/read_job.hpp"

namespace brisk {
namespace {

using Checksums = std::span<const std::uint32_t>;
using Expected = std::optional<Checksums>;

ReadOptions options_of(const JobOptions& options) { return {.threads = options.threads}; }

void check_count(const DirectFile& file, const Expected& expected) {
  const std::uint64_t chunks = chunk_count(file.size());
  if (!expected || expected->size() == chunks) return;
  throw ChecksumMismatch(file.path(), std::min<std::uint64_t>(chunks, expected->size()),
                         "the file has " + std::to_string(chunks) + " chunks, " +
                             std::to_string(expected->size()) + " checksums were given");
}

// One chunk of memory for each read in flight.
class Rooms {
 public:
  explicit Rooms(std::size_t count) : memory_(count * kChunkBytes) {
    for (std::size_t i = 0; i < count; ++i)
      free_.push_back(memory_.room().data() + i * kChunkBytes);
  }

  // Never waits: each reading thread gives its room back before it takes another.
  [[nodiscard]] std::span<std::byte> take(std::size_t size) {
    const std::lock_guard lock(mutex_);
    std::byte* const room = free_.back();
    free_.pop_back();
    return {room, align_up(size, kDirectAlignment)};
  }
  void give_back(std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    free_.push_back(memory_.room().data() + (bytes.data() - memory_.room().data()));
  }

 private:
  PageBuffer memory_;
  std::mutex mutex_;
  std::vector<std::byte*> free_;
};

using ConsumeChunk = std::function<void(std::uint64_t offset, std::span<const std::byte> bytes)>;

// Reads the file through one chunk of memory per thread.
void stream(const DirectFile& file, const ConsumeChunk& consume, const JobOptions& options) {
  std::vector<ReadTask> tasks;
  append_whole_file(tasks, 0, file.size(), kChunkBytes);
  Rooms rooms(std::min<std::size_t>(options.threads, tasks.size()));
  ReadSink sink{
      .place = [&rooms](const ReadTask& task, std::size_t) { return rooms.take(task.size); },
      .consume =
          [&](const ReadTask& task, std::size_t, std::span<const std::byte> bytes) {
            consume(task.offset, bytes);
            rooms.give_back(bytes);
            return true;
          }};
  ReadJob job({&file, 1}, std::move(tasks), options_of(options), std::move(sink), {},
              options.cancel);
  job.run(options.watch);
}

}  // namespace

WholeFile read_file(const std::filesystem::path& path, Expected expected,
                    const JobOptions& options) {
  check(options_of(options));
  const auto begin = std::chrono::steady_clock::now();
  const DirectFile file(path, options.calls);
  check_count(file, expected);
  PageBuffer buffer(file.size());
  std::vector<ReadTask> tasks;
  append_whole_file(tasks, 0, file.size(), kChunkBytes, expected.value_or(Checksums{}));
  ReadSink sink{.place =
                    [&buffer](const ReadTask& task, std::size_t) {
                      return buffer.room().subspan(task.offset,
                                                   align_up(task.size, kDirectAlignment));
                    },
                .consume = [](const ReadTask&, std::size_t, auto) { return true; }};
  {
    const BackgroundPopulate populate(buffer);
    ReadJob job({&file, 1}, std::move(tasks), options_of(options), std::move(sink), {},
                options.cancel);
    job.run(options.watch);
  }
  const bool huge_pages = buffer.in_huge_pages();
  return {.bytes = std::move(buffer),
          .direct = file.direct(),
          .huge_pages = huge_pages,
          .elapsed = std::chrono::steady_clock::now() - begin};
}

std::vector<std::uint32_t> checksum_file(const std::filesystem::path& path,
                                         const JobOptions& options) {
  check(options_of(options));
  const DirectFile file(path, options.calls);
  std::vector<std::uint32_t> checksums(chunk_count(file.size()));
  const auto consume = [&](std::uint64_t offset, std::span<const std::byte> bytes) {
    checksums[offset / kChunkBytes] = crc32c(bytes);
  };
  stream(file, consume, options);
  return checksums;
}

std::vector<std::uint32_t> copy_file(const std::filesystem::path& source,
                                     const std::filesystem::path& target,
                                     const JobOptions& options) {
  check(options_of(options));
  const DirectFile file(source, options.calls);
  NewFile copy(target, file.size(), options.calls);
  std::vector<std::uint32_t> checksums(chunk_count(file.size()));
  const auto consume = [&](std::uint64_t offset, std::span<const std::byte> bytes) {
    checksums[offset / kChunkBytes] = crc32c(bytes);
    copy.write(offset, bytes);
  };
  stream(file, consume, options);
  copy.keep();
  return checksums;
}

}  // namespace brisk
