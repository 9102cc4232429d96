#include "brisk/whole_file.hpp"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "brisk/crc32c.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/new_file.hpp"
#include "brisk/read_job.hpp"
#include "rooms.hpp"

namespace brisk {
namespace {

ReadOptions options_of(const JobOptions& options) { return {.threads = options.threads}; }

using ConsumeChunk = std::function<void(std::uint64_t offset, std::span<const std::byte> bytes)>;

// Reads the file through one chunk of memory per thread.
void stream(const DirectFile& file, const ConsumeChunk& consume, const JobOptions& options) {
  std::vector<ReadTask> tasks;
  append_whole_file(tasks, 0, file.size(), kChunkBytes);
  Rooms rooms(std::min<std::size_t>(options.threads, tasks.size()), kChunkBytes);
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

WholeFile read_file(const std::filesystem::path& path,
                    std::optional<std::span<const std::uint32_t>> expected,
                    const JobOptions& options) {
  const FileToRead source{.path = path, .expected = expected};
  ReadFilesOptions all{
      .read = options_of(options), .cancel = options.cancel, .calls = options.calls};
  if (options.watch) all.watch = [&](std::uint64_t bytes) { options.watch(bytes, 0); };
  FilesInMemory result = read_files({&source, 1}, all);
  return {.bytes = std::move(result.files.front()),
          .direct = result.direct,
          .huge_pages = result.huge_pages,
          .elapsed = result.elapsed};
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
