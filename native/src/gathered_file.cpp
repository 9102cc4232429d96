#include "brisk/gathered_file.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "brisk/chunk.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/fork_shield.hpp"
#include "brisk/new_file.hpp"

namespace brisk {
namespace {

// Room for a chunk and for what a range of a chunk's size needs to be read in whole blocks.
constexpr std::size_t kWindowBytes = kChunkBytes + 2 * kDirectAlignment;

[[noreturn]] void refuse_plan(const char* reason) { throw std::invalid_argument(reason); }

// A range of a source that was read, within one of its chunks, and what it sums up to.
struct Part {
  std::uint32_t source;
  std::uint64_t offset;
  std::uint64_t size;
  std::uint32_t checksum;
};

// Adds up the checksums of consecutive ranges.
class RunningChecksum {
 public:
  void add(std::uint32_t checksum, std::uint64_t size) {
    value_ = crc32c_joined(value_, checksum, size);
  }
  [[nodiscard]] std::uint32_t value() const noexcept { return value_; }

 private:
  std::uint32_t value_ = 0;
};

void check_plan(const GatherPlan& plan, std::span<const DirectFile> sources) {
  std::uint64_t reached = plan.prefix.size();
  for (const GatherPiece& piece : plan.pieces) {
    if (piece.source >= sources.size()) refuse_plan("a piece of a source that is none");
    if (piece.target < reached) refuse_plan("a piece over another one");
    if (piece.target > plan.size || piece.size > plan.size - piece.target) {
      refuse_plan("a piece beyond the end of the target");
    }
    reached = piece.target + piece.size;
    const DirectFile& source = sources[piece.source];
    if (piece.offset > source.size() || piece.size > source.size() - piece.offset) {
      const std::uint64_t there = source.size() - std::min(source.size(), piece.offset);
      throw ShortRead(source.path(), piece.offset, piece.size, there);
    }
  }
  if (reached > plan.size) refuse_plan("a prefix beyond the end of the target");
}

// Reads `room.size()` bytes at `offset` through a window of whole blocks; returns them there.
std::span<const std::byte> read_range(const DirectFile& source, std::uint64_t offset,
                                      std::size_t size, std::span<std::byte> window) {
  const std::uint64_t begin = offset / kDirectAlignment * kDirectAlignment;
  const auto skipped = static_cast<std::size_t>(offset - begin);
  const std::size_t wanted = skipped + size;
  source.read(begin, wanted, window.first(align_up(wanted, kDirectAlignment)));
  return window.subspan(skipped, size);
}

// Splits [offset, offset + size) where chunks begin and calls `each` with (offset, size).
template <typename Each>
void for_each_chunk(std::uint64_t offset, std::uint64_t size, const Each& each) {
  for (const std::uint64_t end = offset + size; offset < end;) {
    const std::uint64_t next = std::min(end, (offset / kChunkBytes + 1) * kChunkBytes);
    each(offset, static_cast<std::size_t>(next - offset));
    offset = next;
  }
}

std::string hex(std::uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

void check_count(const DirectFile& source, std::span<const std::uint32_t> expected) {
  const std::uint64_t chunks = chunk_count(source.size());
  if (expected.size() == chunks) return;
  throw ChecksumMismatch(source.path(), std::min<std::uint64_t>(chunks, expected.size()),
                         "the file has " + std::to_string(chunks) + " chunks, " +
                             std::to_string(expected.size()) + " checksums were given");
}

// Sums up one source's parts and what none of them covers, and compares.
class SourceCheck {
 public:
  SourceCheck(const DirectFile& source, std::span<const std::uint32_t> expected)
      : source_(source), expected_(expected), window_(kWindowBytes) {}

  // Throws ChecksumMismatch, and what reading throws.
  void run(std::vector<Part> parts) {
    std::sort(parts.begin(), parts.end(),
              [](const Part& a, const Part& b) { return a.offset < b.offset; });
    for (const Part& part : parts) {
      if (part.offset < reached_) refuse_plan("bytes of a verified source taken twice");
      read_rest(part.offset);
      add(part.checksum, part.size);
    }
    read_rest(source_.size());
  }

 private:
  void read_rest(std::uint64_t end) {
    for_each_chunk(reached_, end - reached_, [this](std::uint64_t offset, std::size_t size) {
      add(crc32c(read_range(source_, offset, size, window_.room())), size);
    });
  }

  // Takes what comes next; it ends within the chunk that it begins in, or with it.
  void add(std::uint32_t checksum, std::uint64_t size) {
    const std::uint64_t chunk = reached_ / kChunkBytes;
    sum_.add(checksum, size);
    reached_ += size;
    if (reached_ % kChunkBytes != 0 && reached_ != source_.size()) return;
    const std::uint32_t actual = std::exchange(sum_, {}).value();
    if (actual == expected_[chunk]) return;
    throw ChecksumMismatch(source_.path(), chunk,
                           "crc32c is " + hex(actual) + ", expected " + hex(expected_[chunk]));
  }

  const DirectFile& source_;
  const std::span<const std::uint32_t> expected_;
  const PageBuffer window_;
  const ForkShield shield_{window_.room()};
  RunningChecksum sum_;
  std::uint64_t reached_ = 0;
};

// Writes the chunks of the target with a small fixed set of threads. Not movable; to be run once.
class GatherJob {
 public:
  GatherJob(NewFile& target, const GatherPlan& plan, std::span<const DirectFile> sources,
            const JobOptions& options)
      : target_(target),
        plan_(plan),
        sources_(sources),
        options_(options),
        checksums_(chunk_count(plan.size)),
        parts_(checksums_.size()) {}
  ~GatherJob() { stop_and_join(); }

  GatherJob(const GatherJob&) = delete;
  GatherJob& operator=(const GatherJob&) = delete;

  // Returns when all chunks are written. Throws what first failed.
  void run();

  [[nodiscard]] std::vector<std::uint32_t> take_checksums() { return std::move(checksums_); }
  // The parts of one source, in no order.
  [[nodiscard]] std::vector<Part> parts_of(std::uint32_t source) const;

 private:
  void stop_and_join() noexcept;
  void work() noexcept;
  [[nodiscard]] bool take(std::uint64_t& chunk);
  void assemble(std::uint64_t chunk, std::span<std::byte> room, std::span<std::byte> window);
  void fill_own(std::uint64_t begin, std::span<std::byte> room) const;
  [[nodiscard]] std::uint32_t add_piece(const GatherPiece& piece, std::uint64_t begin,
                                        std::span<std::byte> room, std::span<std::byte> window,
                                        std::vector<Part>& parts) const;
  [[nodiscard]] bool is_cancelled() const noexcept {
    return options_.cancel != nullptr && options_.cancel->cancelled();
  }

  NewFile& target_;
  const GatherPlan& plan_;
  const std::span<const DirectFile> sources_;
  const JobOptions& options_;
  std::vector<std::uint32_t> checksums_;  // each by the thread that has the chunk
  std::vector<std::vector<Part>> parts_;  // by chunk, likewise

  std::mutex mutex_;  // guards everything below but threads_
  std::condition_variable changed_;
  std::uint64_t next_ = 0;
  std::uint64_t bytes_done_ = 0;
  unsigned running_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;

  std::vector<std::thread> threads_;
};

void GatherJob::run() {
  if (options_.watch) options_.watch(0, 0);
  const auto threads =
      static_cast<unsigned>(std::min<std::uint64_t>(options_.threads, checksums_.size()));
  for (unsigned thread = 0; thread < threads; ++thread) {
    {
      const std::lock_guard lock(mutex_);
      ++running_;
    }
    try {
      threads_.emplace_back([this] { work(); });
    } catch (...) {
      const std::lock_guard lock(mutex_);
      --running_;
      throw;
    }
  }
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kWatchInterval, [this] { return running_ == 0; })) {
    const std::uint64_t done = bytes_done_;
    lock.unlock();
    if (options_.watch) options_.watch(done, 0);
    lock.lock();
  }
  if (failure_) std::rethrow_exception(failure_);
  if (bytes_done_ < plan_.size || (checksums_.empty() && is_cancelled()))
    throw Cancelled(bytes_done_);
  lock.unlock();
  if (options_.watch) options_.watch(plan_.size, 0);
}

void GatherJob::stop_and_join() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  for (auto& thread : threads_) thread.join();
}

void GatherJob::work() noexcept {
  try {
    const PageBuffer scratch(kChunkBytes + kWindowBytes);
    const ForkShield shield(scratch.room());
    const std::span<std::byte> room = scratch.room().first(kChunkBytes);
    const std::span<std::byte> window = scratch.room().subspan(kChunkBytes, kWindowBytes);
    for (std::uint64_t chunk = 0; take(chunk);) assemble(chunk, room, window);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
    stop_ = true;
  }
  const std::lock_guard lock(mutex_);
  if (--running_ == 0) changed_.notify_all();
}

bool GatherJob::take(std::uint64_t& chunk) {
  const std::lock_guard lock(mutex_);
  if (stop_ || next_ == checksums_.size() || is_cancelled()) return false;
  chunk = next_++;
  return true;
}

void GatherJob::assemble(std::uint64_t chunk, std::span<std::byte> room,
                         std::span<std::byte> window) {
  const std::uint64_t begin = chunk * kChunkBytes;
  const std::uint64_t end = std::min<std::uint64_t>(plan_.size, begin + kChunkBytes);
  const auto size = static_cast<std::size_t>(end - begin);
  std::uint64_t reached = begin;
  RunningChecksum sum;
  const auto add_own = [&](std::uint64_t until) {
    const auto own = room.subspan(static_cast<std::size_t>(reached - begin),
                                  static_cast<std::size_t>(until - reached));
    fill_own(reached, own);
    sum.add(crc32c(own), own.size());
    reached = until;
  };
  auto piece = std::partition_point(
      plan_.pieces.begin(), plan_.pieces.end(),
      [begin](const GatherPiece& one) { return one.target + one.size <= begin; });
  for (; piece != plan_.pieces.end() && piece->target < end; ++piece) {
    if (piece->size == 0) continue;
    const std::uint64_t from = std::max(begin, piece->target);
    const std::uint64_t until = std::min(end, piece->target + piece->size);
    if (from > reached) add_own(from);
    const auto part = room.subspan(static_cast<std::size_t>(from - begin),
                                   static_cast<std::size_t>(until - from));
    sum.add(add_piece(*piece, from, part, window, parts_[chunk]), part.size());
    reached = until;
  }
  if (reached < end) add_own(end);
  const auto blocks = room.first(align_up(size, kDirectAlignment));
  std::fill(blocks.begin() + static_cast<std::ptrdiff_t>(size), blocks.end(), std::byte{});
  target_.write_blocks(begin, blocks, size);
  checksums_[chunk] = sum.value();
  const std::lock_guard lock(mutex_);
  bytes_done_ += size;
}

// Fills `room`, which lies at `begin` of the target, with what is there of the prefix, then zeros.
void GatherJob::fill_own(std::uint64_t begin, std::span<std::byte> room) const {
  const auto from = static_cast<std::size_t>(std::min<std::uint64_t>(begin, plan_.prefix.size()));
  const auto own = plan_.prefix.subspan(from, std::min(room.size(), plan_.prefix.size() - from));
  std::copy(own.begin(), own.end(), room.begin());
  std::fill(room.begin() + static_cast<std::ptrdiff_t>(own.size()), room.end(), std::byte{});
}

// Fills `room`, which lies at `begin` of the target, from the piece; returns what it sums up to.
std::uint32_t GatherJob::add_piece(const GatherPiece& piece, std::uint64_t begin,
                                   std::span<std::byte> room, std::span<std::byte> window,
                                   std::vector<Part>& parts) const {
  const std::uint64_t from = piece.offset + (begin - piece.target);
  const auto bytes = read_range(sources_[piece.source], from, room.size(), window);
  std::memcpy(room.data(), bytes.data(), bytes.size());
  RunningChecksum sum;
  for_each_chunk(from, room.size(), [&](std::uint64_t offset, std::size_t size) {
    // Of the copy, which is what will be written.
    const std::uint32_t part = crc32c(room.subspan(static_cast<std::size_t>(offset - from), size));
    parts.push_back({.source = piece.source, .offset = offset, .size = size, .checksum = part});
    sum.add(part, size);
  });
  return sum.value();
}

std::vector<Part> GatherJob::parts_of(std::uint32_t source) const {
  std::vector<Part> found;
  for (const auto& of_chunk : parts_) {
    std::copy_if(of_chunk.begin(), of_chunk.end(), std::back_inserter(found),
                 [source](const Part& part) { return part.source == source; });
  }
  return found;
}

}  // namespace

GatheredFile gather_file(const std::filesystem::path& target, const GatherPlan& plan,
                         const std::vector<GatherSource>& sources, const JobOptions& options) {
  if (options.threads < 1 || options.threads > kThreadsMax) {
    throw std::invalid_argument("threads must be between 1 and " + std::to_string(kThreadsMax) +
                                ", not " + std::to_string(options.threads));
  }
  std::vector<DirectFile> files;
  files.reserve(sources.size());
  for (const GatherSource& source : sources) {
    files.emplace_back(source.path, options.calls);
    if (source.expected) check_count(files.back(), *source.expected);
  }
  check_plan(plan, files);
  NewFile file(target, plan.size, options.calls, NewFile::Writes::kDirect);
  GatherJob job(file, plan, files, options);
  job.run();
  for (std::uint32_t source = 0; source < files.size(); ++source) {
    const auto& expected = sources[source].expected;
    if (expected) SourceCheck(files[source], *expected).run(job.parts_of(source));
  }
  file.keep();
  const auto is_direct = [](const DirectFile& one) { return one.direct(); };
  return {.checksums = job.take_checksums(),
          .direct_reads = std::all_of(files.begin(), files.end(), is_direct),
          .direct_writes = file.direct()};
}

}  // namespace brisk
