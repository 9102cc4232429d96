#include "brisk/whole_file.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>

#include "brisk/crc32c.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/new_file.hpp"

namespace brisk {
namespace {

using Expected = std::optional<std::span<const std::uint32_t>>;

void check(const JobOptions& options) {
  if (options.threads >= 1 && options.threads <= kThreadsMax) return;
  throw std::invalid_argument("threads must be between 1 and " + std::to_string(kThreadsMax) +
                              ", not " + std::to_string(options.threads));
}

void check_count(const DirectFile& file, const Expected& expected) {
  const std::uint64_t chunks = chunk_count(file.size());
  if (!expected || expected->size() == chunks) return;
  throw ChecksumMismatch(file.path(), std::min<std::uint64_t>(chunks, expected->size()),
                         "the file has " + std::to_string(chunks) + " chunks, " +
                             std::to_string(expected->size()) + " checksums were given");
}

std::string hex(std::uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

void verify(const DirectFile& file, const Chunk& chunk, std::uint32_t expected) {
  const std::uint32_t actual = crc32c(chunk.bytes);
  if (actual == expected) return;
  throw ChecksumMismatch(file.path(), chunk.index,
                         "crc32c is " + hex(actual) + ", expected " + hex(expected));
}

// Tells the watch of the beginning while nothing is read yet: what it does then, such as
// cancelling, holds for the first chunk already.
void announce(const JobOptions& options) {
  if (options.watch) options.watch(0);
}

// Reads the file through one chunk of memory per thread.
void stream(const DirectFile& file, const ChunkReader::Consume& consume,
            const JobOptions& options) {
  const auto threads =
      static_cast<std::size_t>(std::min<std::uint64_t>(options.threads, chunk_count(file.size())));
  const PageBuffer scratch(threads * kChunkBytes);
  const auto place = [&scratch](std::uint64_t, std::size_t wanted, unsigned thread) {
    return scratch.room().subspan(thread * kChunkBytes, align_up(wanted, kDirectAlignment));
  };
  announce(options);
  ChunkReader reader(file, options.threads, place, consume, options.cancel);
  reader.wait(options.watch);
}

}  // namespace

WholeFile read_file(const std::filesystem::path& path, Expected expected,
                    const JobOptions& options) {
  check(options);
  const auto begin = std::chrono::steady_clock::now();
  const DirectFile file(path, options.calls);
  check_count(file, expected);
  PageBuffer buffer(file.size());
  announce(options);
  {
    const BackgroundPopulate populate(buffer);
    const auto place = [&buffer](std::uint64_t offset, std::size_t wanted, unsigned) {
      return buffer.room().subspan(offset, align_up(wanted, kDirectAlignment));
    };
    const auto consume = [&file, &expected](const Chunk& chunk) {
      if (expected) verify(file, chunk, (*expected)[chunk.index]);
    };
    ChunkReader reader(file, options.threads, place, consume, options.cancel);
    reader.wait(options.watch);
  }
  const bool huge_pages = buffer.in_huge_pages();
  return {.bytes = std::move(buffer),
          .direct = file.direct(),
          .huge_pages = huge_pages,
          .elapsed = std::chrono::steady_clock::now() - begin};
}

std::vector<std::uint32_t> checksum_file(const std::filesystem::path& path,
                                         const JobOptions& options) {
  check(options);
  const DirectFile file(path, options.calls);
  std::vector<std::uint32_t> checksums(chunk_count(file.size()));
  stream(file, [&](const Chunk& chunk) { checksums[chunk.index] = crc32c(chunk.bytes); }, options);
  return checksums;
}

std::vector<std::uint32_t> copy_file(const std::filesystem::path& source,
                                     const std::filesystem::path& target,
                                     const JobOptions& options) {
  check(options);
  const DirectFile file(source, options.calls);
  NewFile copy(target, file.size(), options.calls);
  std::vector<std::uint32_t> checksums(chunk_count(file.size()));
  const auto consume = [&](const Chunk& chunk) {
    checksums[chunk.index] = crc32c(chunk.bytes);
    copy.write(chunk.offset, chunk.bytes);
  };
  stream(file, consume, options);
  copy.keep();
  return checksums;
}

}  // namespace brisk
