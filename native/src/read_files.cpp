#include "brisk/read_files.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "brisk/counters.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/fork_shield.hpp"
#include "brisk/huge_pages.hpp"
#include "brisk/populate.hpp"

namespace brisk {
namespace {

std::vector<DirectFile> open_all(std::span<const FileToRead> sources, const SystemCalls& calls) {
  std::vector<DirectFile> files;
  files.reserve(sources.size());
  for (const FileToRead& source : sources) {
    files.emplace_back(source.path, calls);
    const std::uint64_t chunks = chunk_count(files.back().size());
    if (!source.expected || source.expected->size() == chunks) continue;
    throw ChecksumMismatch(source.path, std::min<std::uint64_t>(chunks, source.expected->size()),
                           "the file has " + std::to_string(chunks) + " chunks, " +
                               std::to_string(source.expected->size()) + " checksums were given");
  }
  return files;
}

// Returns all chunks of all files: those of `first`, then the others.
std::vector<ChunkPlace> all_chunks(std::span<const DirectFile> files,
                                   std::span<const ChunkPlace> first) {
  std::vector<std::vector<char>> is_listed;
  for (const DirectFile& file : files) is_listed.emplace_back(chunk_count(file.size()), 0);
  std::vector<ChunkPlace> places(first.begin(), first.end());
  for (const ChunkPlace& place : first) {
    if (place.file >= files.size() || place.chunk >= is_listed[place.file].size() ||
        std::exchange(is_listed[place.file][place.chunk], 1) != 0) {
      throw std::invalid_argument("order names chunk " + std::to_string(place.chunk) + " of file " +
                                  std::to_string(place.file) + " twice, or there is none");
    }
  }
  for (std::uint32_t file = 0; file < files.size(); ++file) {
    for (std::uint64_t chunk = 0; chunk < is_listed[file].size(); ++chunk) {
      if (is_listed[file][chunk] == 0) places.push_back({.file = file, .chunk = chunk});
    }
  }
  return places;
}

struct Plan {
  std::vector<ReadTask> tasks;
  std::vector<std::size_t> milestones;  // in tasks, one for each of the caller's
};

// Joins neighbours into reads as large as the options say, but none across a milestone.
Plan make_plan(std::span<const FileToRead> sources, std::span<const DirectFile> files,
               const ReadFilesOptions& options) {
  const std::vector<ChunkPlace> places = all_chunks(files, options.order);
  const auto& milestones = options.milestones;
  if (!std::is_sorted(milestones.begin(), milestones.end()) ||
      (!milestones.empty() && milestones.back() > places.size())) {
    throw std::invalid_argument("milestones must rise up to the number of chunks, " +
                                std::to_string(places.size()));
  }
  Plan plan;
  auto milestone = milestones.begin();
  for (std::size_t i = 0; i <= places.size(); ++i) {
    const bool is_milestone = milestone != milestones.end() && *milestone == i;
    for (; milestone != milestones.end() && *milestone == i; ++milestone) {
      plan.milestones.push_back(plan.tasks.size());
    }
    if (i == places.size()) break;
    const auto [file, chunk] = places[i];
    const std::uint64_t offset = chunk * kChunkBytes;
    const auto size =
        static_cast<std::size_t>(std::min<std::uint64_t>(kChunkBytes, files[file].size() - offset));
    ReadTask* const last = plan.tasks.empty() || is_milestone ? nullptr : &plan.tasks.back();
    if (last != nullptr && last->file == file && last->offset + last->size == offset &&
        last->size + size <= options.read.read_bytes) {
      last->size += size;
    } else {
      plan.tasks.push_back({.file = file, .offset = offset, .size = size});
    }
  }
  for (ReadTask& task : plan.tasks) {
    const auto& expected = sources[task.file].expected;
    if (expected) task.expected = expected->subspan(task.offset / kChunkBytes, task.chunks());
  }
  return plan;
}

std::vector<FileMemory> make_memory(std::span<const DirectFile> files, Pool* pool) {
  std::vector<FileMemory> memory;
  memory.reserve(files.size());
  for (const DirectFile& file : files) {
    if (file.size() > SIZE_MAX / 2) throw std::bad_alloc();
    const auto size = static_cast<std::size_t>(file.size());
    if (pool != nullptr) {
      memory.emplace_back(pool->allocate(size));
    } else {
      memory.emplace_back(PageBuffer(size));
    }
  }
  return memory;
}

// Shields the memory for as long as the kernel may write into it.
std::vector<ForkShield> shield(const std::vector<FileMemory>& memory) {
  std::vector<ForkShield> shields;
  shields.reserve(memory.size());
  for (const FileMemory& file : memory) shields.emplace_back(file.room());
  return shields;
}

// What is to be faulted in while the reads go on: fresh memory in the order in which it is read.
std::vector<std::span<std::byte>> to_populate(const std::vector<FileMemory>& memory,
                                              std::span<const ReadTask> tasks, const Pool* pool) {
  std::vector<std::span<std::byte>> parts;
  std::size_t total = 0;
  if (pool != nullptr) return parts;
  for (const ReadTask& task : tasks) {
    const auto room = memory[task.file].room().subspan(task.offset);
    parts.push_back(room.first(std::min(align_up(task.size, kDirectAlignment), room.size())));
    total += task.size;
  }
  if (total <= kPopulateBytesMin) parts.clear();
  return parts;
}

bool in_huge_pages(const std::vector<FileMemory>& memory, const Pool* pool) {
  if (pool != nullptr) return pool->in_huge_pages();
  std::size_t total = 0;
  std::vector<std::span<const std::byte>> large;
  for (const FileMemory& file : memory) {
    total += file.size();
    if (file.size() >= kHugePageBytes) large.push_back(file.room());
  }
  const std::size_t huge = huge_page_bytes_in(large);
  return huge > 0 && huge >= total / 2;
}

// Tells the caller's milestones, each once, and how far it is.
Watch make_watch(const ReadFilesOptions& options, std::span<const std::size_t> milestones) {
  return [&options, milestones, next = std::size_t{0}](std::uint64_t bytes,
                                                       std::size_t tasks) mutable {
    if (options.watch) options.watch(bytes);
    for (; next < milestones.size() && milestones[next] <= tasks; ++next) {
      if (options.on_milestone) options.on_milestone(options.milestones[next]);
    }
  };
}

void add_up(FilesInMemory& result, std::span<const DirectFile> files) {
  for (const DirectFile& file : files) {
    (file.direct() ? result.direct_bytes : result.buffered_bytes) += file.size();
    result.direct = result.direct && file.direct();
  }
  count({.huge_page_bytes = result.huge_pages ? result.bytes() : 0,
         .small_page_bytes = result.huge_pages ? 0 : result.bytes()});
}

}  // namespace

std::span<std::byte> FileMemory::bytes() const noexcept {
  return region_ ? region_->bytes() : pages_->bytes();
}

std::span<std::byte> FileMemory::room() const noexcept {
  return region_ ? region_->room() : pages_->room();
}

std::optional<std::size_t> FileMemory::pool_offset() const noexcept {
  return region_ ? std::optional(region_->offset()) : std::nullopt;
}

FilesInMemory read_files(std::span<const FileToRead> sources, const ReadFilesOptions& options) {
  check(options.read);
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<DirectFile> files = open_all(sources, options.calls);
  const Plan plan = make_plan(sources, files, options);
  FilesInMemory result{.files = make_memory(files, options.pool)};
  const std::vector<ForkShield> shields = shield(result.files);
  if (options.on_memory) options.on_memory(result.files);
  ReadSink sink{.place =
                    [&result](const ReadTask& task, std::size_t) {
                      return result.files[task.file].room().subspan(
                          task.offset, align_up(task.size, kDirectAlignment));
                    },
                .consume = [](const ReadTask&, std::size_t, auto) { return true; }};
  {
    const BackgroundPopulate populate(to_populate(result.files, plan.tasks, options.pool));
    ReadJob job(files, plan.tasks, options.read, std::move(sink), plan.milestones, options.cancel);
    job.run(make_watch(options, plan.milestones));
    result.engine = job.engine();
  }
  result.huge_pages = in_huge_pages(result.files, options.pool);
  add_up(result, files);
  result.elapsed = std::chrono::steady_clock::now() - begin;
  return result;
}

}  // namespace brisk
